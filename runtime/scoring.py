"""The one gate through which a task's verdicts come: each is checked, limited in time, and counted.

A verdict that fails gives its sample reward 0 and counts in `verifier_error`; the other samples train. It
fails by any exception (SystemExit too), by taking too long, or by returning anything but a dict with a finite
`reward` and a true or false `correct`. The first failure is shown at once. A task that returns a key which
tinyr1 writes itself is refused at its first verdict.
"""

import contextlib
import copy
import faulthandler
import math
import numbers
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from tasks import Example, Task, TaskError, Verdict

# Names in records and in rows of metrics that are tinyr1's own.
RESERVED = frozenset(
    "example prompt completion tokens finished step split task problem sample task_reward greedy "
    "accuracy accuracy_ci n problems no_answer_share tokens_max tokens_correct tokens_wrong tokens_cut "
    "cut_share loss grad_norm skipped updated_tokens clip_frac kl entropy rollout_kl lr kl_coefficient "
    "reward_shaped reward_std dead_groups sampled_tokens resampled overlong_prompts "
    "value_loss value explained_variance prm_loss prm_accuracy process_reward".split()
)
RESERVED_BEGINNINGS = ("time/", "reward/", "eval/", "probe/", "pass@", "cons@")
TEXTS = ("answer", "error")
# characters of a completion that a message shows
QUOTED = 500
# size of a reward; its square must fit into float32
LARGEST = 1e6
# seconds after the limit until a computation that Python cannot interrupt is reported
GRACE = 10.0


class Posed(Protocol):
    """What has an example: runtime.problems.Problem, which this module does not import."""

    example: Example


class VerdictTimeout(BaseException):
    """Not an Exception, so that a task's `except Exception` does not swallow it."""


class BadVerdict(ValueError):
    """What `reward` returned is no verdict."""


def name_of(task: Task) -> str:
    """Its file, or its module's name."""
    return getattr(task, "__file__", None) or task.__name__


# ---------------------------------------------------------------- one verdict


def checked(result: Any) -> Verdict:
    """The verdict with plain numbers: {"reward", "correct", ...}. Errors: BadVerdict."""
    if not isinstance(result, dict):
        raise BadVerdict(
            f"reward() returned {type(result).__name__}; expected a dict such as "
            "{'reward': 1.0, 'correct': True}"
        )
    if missing := [key for key in ("reward", "correct") if key not in result]:
        raise BadVerdict(f"reward() returned a dict without {missing[0]!r}: {list(result)}")
    verdict: Verdict = {str(key): plain(str(key), value) for key, value in result.items()}
    if verdict["correct"] not in (0, 1):
        raise BadVerdict(f"'correct' is {result['correct']!r}; expected True or False")
    reward = verdict["reward"]
    if not isinstance(reward, (bool, int, float)):
        raise BadVerdict(f"'reward' is {result['reward']!r}; expected a number")
    if abs(reward) > LARGEST:
        raise BadVerdict(f"'reward' is {reward:.3g}; expected at most {LARGEST:g} in size")
    # a verifier's own word that it could not decide
    if verdict.get("verifier_error", 0) not in (0, 1):
        raise BadVerdict(f"'verifier_error' is {result['verifier_error']!r}; expected 0 or 1")
    if verdict.get("verifier_error"):
        verdict = {"error": "the task returned verifier_error"} | verdict
    return verdict | {"reward": float(reward), "correct": bool(verdict["correct"])}


def refuse_reserved(task: Task, verdict: Verdict) -> None:
    """TaskError for a key that records or metrics have themselves."""
    taken = [key for key in verdict if key in RESERVED or key.startswith(RESERVED_BEGINNINGS)]
    if taken:
        raise TaskError(
            f"The task {name_of(task)} returns the key {taken[0]!r}, which tinyr1 writes itself. Give it "
            f"another name. Reserved are {', '.join(sorted(RESERVED))}, and what begins with "
            f"{', '.join(RESERVED_BEGINNINGS)}."
        )


def plain(key: str, value: Any) -> bool | int | float | str | None:
    """The value as Python's own number, text or None. Errors: BadVerdict."""
    if value is None or isinstance(value, str):
        return value
    if key in TEXTS:
        return str(value)
    # numbers of numpy and torch
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return value
    try:
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    except (TypeError, ValueError):
        raise BadVerdict(f"{key!r} is a {type(value).__name__}; expected a number, a text or None") from None
    if not finite:
        raise BadVerdict(f"{key!r} is not a finite number; leave a key out where it does not apply")
    return number


@contextlib.contextmanager
def time_limit(seconds: float, task: Task, completion: str) -> Iterator[None]:
    """Raise VerdictTimeout in the body after so many seconds, and again every second after that. The first
    time says which task takes so long on which text: it may catch the exception. Computations inside a C
    library cannot be interrupted; `Overdue` tells of those.
    """
    told = False

    def expire(number: int, frame: Any) -> None:
        nonlocal told
        if not told:
            told = True
            tqdm.write(
                f"\nThe task {name_of(task)} has given no verdict within {seconds:g} seconds "
                f"(--verdict_seconds) on {completion[:QUOTED]!r}; interrupting it.",
                file=sys.stderr,
            )
        raise VerdictTimeout(f"no verdict within {seconds:g} seconds (--verdict_seconds)")

    # Windows has no such timer, and another thread gets no signals
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def verdict_of(task: Task, completion: str, example: Example, seconds: float) -> Verdict:
    """The task's checked verdict, or that of a failed one. Errors: TaskError for a reserved key."""
    try:
        with time_limit(seconds, task, completion):
            # a copy, so that nothing the task does to it reaches the other samples
            verdict = checked(task.reward(completion, copy.deepcopy(example)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        show_first(task, completion, error)
        message = f"{type(error).__name__}: {error}"
        return {"verifier_error": 1.0, "reward": 0.0, "correct": False, "error": message}
    refuse_reserved(task, verdict)
    return {"verifier_error": 0.0} | verdict


_shown: set[str] = set()


def show_first(task: Task, completion: str, error: BaseException) -> None:
    """Print a task's first failed verdict in this process, with the task's part of the traceback."""
    if name_of(task) in _shown:
        return
    _shown.add(name_of(task))
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    trace = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    quoted = repr(completion[:QUOTED]) + (" ..." if len(completion) > QUOTED else "")
    tqdm.write(
        f"\nA verdict of the task {name_of(task)} failed: reward 0, counted in verifier_error. Later "
        f"failures are counted and not shown.\n{trace}\nThe completion was {quoted}\n",
        file=sys.stderr,
    )


# ---------------------------------------------------------------- the verdicts of a batch


class Overdue:
    """Prints the stack of Python if `still_alive` is not called for so many seconds: a computation inside a C
    library stops the interpreter, and nothing but a thread in C can tell.
    """

    def __init__(self, seconds: float):
        self.seconds, self.armed = seconds, -math.inf

    def still_alive(self) -> None:
        # arming it starts a thread, which is too slow for every verdict
        if time.monotonic() - self.armed > 1:
            faulthandler.dump_traceback_later(self.seconds, file=sys.__stderr__ or 2)
            self.armed = time.monotonic()

    def __enter__(self) -> "Overdue":
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()


def score(
    task: Task, problems: Sequence[Posed], texts: list[str], G: int, seconds: float = 60.0
) -> list[Verdict]:
    """The task's verdict on each of the G texts of each problem. Errors: TaskError."""
    verdicts = []
    with Overdue(seconds + GRACE) as overdue:
        for i, text in enumerate(texts):
            overdue.still_alive()
            verdicts.append(verdict_of(task, text, problems[i // G].example, seconds))
    return verdicts


def check_some_succeeded(task: Task, verdicts: list[Verdict]) -> None:
    """TaskError if every verdict failed."""
    failed = [v.get("error", "no reason") for v in verdicts if v["verifier_error"]]
    if failed and len(failed) == len(verdicts):
        raise TaskError(
            f"Every one of {len(failed)} verdicts of the task {name_of(task)} failed, the first with "
            f"{failed[0]}. Fix reward(); `python tinyr1.py tasks FILE` tries it on answers."
        )
