"""Show what a task does: examples, the prompt, and the rewards of good and bad answers.

    python tinyr1.py tasks countdown                                    with the default options of the task
    python tinyr1.py tasks countdown numbers=4 high=99 reward=simplerl  with other options
    python tinyr1.py tasks ./my_task.py --template r1                   your own task, in another template
    python tinyr1.py tasks competition_math --attack                    try hostile and altered answers

The answers come from tests/fixtures/NAME_answers.json (completions with their verdicts), if the task has one;
--attack also reads NAME_pairs.json there (gold answers, each with answers to accept and to refuse).
"""

import json
import re
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from commands import make_parser
from runtime.runfolder import UserError
from runtime.scoring import check_some_succeeded, verdict_of
from tasks import TEMPLATES, Task, TaskError, in_both_splits, load, render

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
# The answers to show of a task without a fixture.
STOCK = [
    {"completion": "", "why": "nothing at all"},
    {"completion": "<answer></answer>", "why": "an empty answer"},
    {"completion": "<think>one moment", "why": "cut off while thinking"},
    {"completion": ["<answer>", {"repeat": "(", "times": 100_000}, "</answer>"], "why": "100 kB of brackets"},
]
# Seconds after which a verdict counts as failed, as in training.
SECONDS = 60.0
# Seconds that a verdict may take in an attack.
SLOWEST = 2.0
# Test problems whose gold answers are altered, and examples per split that are compared.
MUTATED, COMPARED = 50, 1000
# Answers that are wrong for every problem.
NEVER = {
    "": "an empty answer",
    "?": "a question mark",
    "{" * 100_000: "100 kB of braces",
    "(" * 500: "500 brackets",
    "9" * 3000: "3,000 nines",
    "9^{9^{9^9}}": "a power tower",
    "9**9**9**9": "a power tower in Python",
    "__import__('os')._exit(1)": "code",
    "eval('1')": "more code",
    "\0": "a NUL byte",
}
FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")


class Trial(NamedTuple):
    """A completion to judge, and what is known about it."""

    completion: str
    example: dict
    # None if not known
    correct: bool | None
    description: str


def completion_of(case: dict[str, Any]) -> str:
    """A fixture's completion: a text, or a list of texts and {"repeat": text, "times": n}, to be joined."""
    parts = case["completion"] if isinstance(case["completion"], list) else [case["completion"]]
    return "".join(part if isinstance(part, str) else part["repeat"] * part["times"] for part in parts)


def fixture(name: str, kind: str = "answers", default: Any = ()) -> Any:
    """The content of a task's file in tests/fixtures, or the default."""
    path = FIXTURES / f"{name}_{kind}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def cases(name: str, example: dict) -> Iterator[Trial]:
    """The answers of the task's fixture, or STOCK's. A case may replace fields of the example."""
    for case in fixture(name, default=STOCK):
        fields = {key: case[key] for key in case if key in example}
        yield Trial(completion_of(case), {**example, **fields}, case.get("correct"), case["why"])


def first_example(task: Any, name: str, options: dict[str, str]) -> dict:
    """A test problem, or one of the fixture for a task without problems. Errors: TaskError."""
    try:
        for example in task.examples("test", **options):
            return example
        raise TaskError(f"The task {name} has no test problems.")
    except TaskError:
        if options or not (known := fixture(name)):
            raise
        return {key: value for key, value in known[0].items() if key not in ("completion", "correct", "why")}


def states_gold(task: Task) -> bool:
    """Whether the task can write a right answer: it has gold(example) and state(answer, example)."""
    return hasattr(task, "gold") and hasattr(task, "state")


def right_answer(task: Any, example: dict) -> str | None:
    """A completion with the task's own right answer; None if the task gives none."""
    if not states_gold(task):
        return None
    answer = task.gold(example)
    return None if answer is None else task.state(answer, example)


def show(task: Any, name: str, options: dict[str, str], template: str, number: int) -> None:
    """Print `number` examples of each split, a prompt, and verdicts. Errors: TaskError."""
    for split in ("train", "test"):
        print(f"# {split}")
        try:
            for example in islice(task.examples(split, **options), number):
                print(json.dumps(example, ensure_ascii=False, default=str))
        except TaskError as error:
            if options:
                raise
            print(error)
    first = first_example(task, name, options)
    print(f"\n# a prompt, in the template {template!r}")
    print(render(template, task.question(first)))
    print("\n# rewards: ✓ right, · wrong; an answer to another problem names that problem at the end")
    answers = [*cases(name, first)]
    if (right := right_answer(task, first)) is not None:
        answers.insert(0, Trial(right, first, True, "the task's own right answer"))
    verdicts = [verdict_of(task, answer.completion, answer.example, SECONDS) for answer in answers]
    for answer, verdict in zip(answers, verdicts):
        earned = verdict.get("error") or f"{verdict['reward']:5.1f} {'✓' if verdict['correct'] else '·'}"
        text = "".join(c if c.isprintable() else "⏎" if c == "\n" else "�" for c in answer.completion)
        text = text if len(text) <= 60 else text[:20] + " … " + text[-37:]
        fields = [f"{key} {value}" for key, value in answer.example.items() if first.get(key) != value]
        note = f"  ({', '.join(fields)[:80]})" if fields else ""
        print(f"{earned}  {text:60}  {answer.description}{note}")
    check_some_succeeded(task, verdicts)
    if right is None:
        print(
            "To see what a right answer earns, add gold(example) -> right answer and "
            "state(answer, example) -> completion to the task."
        )


# ---------------------------------------------------------------- the attack


def mutations(task: Any, example: dict, answer: str) -> Iterator[tuple[str, bool, str]]:
    """(completion, whether it is right, description) made of the example's right answer."""

    def state(text: str) -> str:
        return task.state(text, example)

    wrong = perturbed(answer)
    right = state(answer)
    yield right, True, "the gold answer"
    yield f"<think>hm</think>\n{right}", True, "the gold answer after a thinking part"
    yield right[: right.rindex(answer) + len(answer)], False, "truncated before the end of its mark-up"
    yield state(wrong), False, "a digit perturbed"
    yield state(f"{wrong} {right}"), False, "nested in a wrong one"
    yield f"{right} or {state(wrong)}", False, "the right one first, then a wrong one"
    yield f"<think>{right}</think>", False, "in the thinking part only"
    yield f"<think>{right}", False, "in a thinking part without end"
    yield answer, False, "without mark-up"
    if re.search("[0-9]", answer):
        yield state(answer.translate(FULL_WIDTH)), False, "in full-width digits"
    for text, why in NEVER.items():
        yield state(text), False, why


def perturbed(answer: str) -> str:
    """The answer with its first digit changed, or another word if it has no digit."""
    digit = re.search("[0-9]", answer)
    return f"{answer[: digit.start()]}{(int(digit[0]) + 1) % 10}{answer[digit.end() :]}" if digit else "zebra"


def trials(task: Any, name: str, options: dict[str, str]) -> Iterator[Trial]:
    """All answers of the attack. Errors: TaskError."""
    first = first_example(task, name, options)
    for case in cases(name, first):
        yield case._replace(description=f"fixture: {case.description}")
    golds = []
    if states_gold(task):
        for case in fixture(name, "pairs"):
            pair = {**first, "answer": case["answer"]}
            golds.append(pair)
            for verdict in ("accept", "refuse"):
                for answer in case[verdict]:
                    what = f"{case['kind']}: {verdict} {answer} for {case['answer']}"
                    yield Trial(task.state(answer, pair), pair, verdict == "accept", what)
        try:
            golds += islice(task.examples("test", **options), MUTATED)
        except TaskError:
            # the task ships no problems
            pass
    for example in golds:
        if answer := task.gold(example):
            for completion, expected, what in mutations(task, example, answer):
                yield Trial(completion, example, expected, f"{answer}: {what}")


def compare_splits(task: Any, options: dict[str, str]) -> list[str]:
    """Print the sizes of the splits, and return what is wrong with them. Errors: TaskError."""
    twice = {
        split: [list(islice(task.examples(split, **options), COMPARED)) for _ in range(2)]
        for split in ("train", "test")
    }
    wrong = []
    if any([*map(task.question, one)] != [*map(task.question, two)] for one, two in twice.values()):
        wrong.append("examples: a second call gives other problems or another order")
    train, test = twice["train"][0], twice["test"][0]
    shared = in_both_splits(train, test)
    print(f"{len(train)} training and {len(test)} test problems, {len(shared)} in both splits")
    if shared:
        such = task.question(shared[0])[:80]
        wrong.append(f"examples: {len(shared)} problems are in both splits, such as {such!r}")
    return wrong


def attack(task: Task, name: str, options: dict[str, str]) -> int:
    """Print what is checked and every wrong verdict; return how many are wrong. Errors: TaskError."""
    wrong, tried, seconds, slowest = [], 0, 0.0, ""
    for completion, example, expected, what in trials(task, name, options):
        tried += 1
        start = time.perf_counter()
        try:
            result = verdict_of(task, completion, example, SECONDS)
            seconds, slowest = max((seconds, slowest), (time.perf_counter() - start, what))
            found = bool(result["correct"])
            if result["verifier_error"]:
                wrong.append(f"{what}: {result['error']}")
            elif expected is not None and found != expected:
                wrong.append(f"{what}: {'accepted' if found else 'refused'}")
            if verdict_of(task, completion, example, SECONDS) != result:
                wrong.append(f"{what}: a second call gives another verdict")
        except TaskError:
            raise
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    print(f"{tried} answers, {len(wrong)} wrong verdicts; slowest {seconds:.3f} s ({slowest[:60]})")
    if seconds > SLOWEST:
        wrong.append(f"{slowest}: took {seconds:.1f} s, more than {SLOWEST}")
    if not states_gold(task):
        print("no gold answers were altered: that needs gold(example) and state(answer, example) in the task")
    try:
        wrong += compare_splits(task, options)
    except TaskError as error:
        print(f"splits not compared: {error}")
    for line in wrong:
        print(f"WRONG  {line.encode(errors='replace').decode()}")
    return len(wrong)


def main(argv: list[str] | None = None) -> int:
    """Errors: TaskError, UserError."""
    parser = make_parser("tasks", "TASK [key=value ...] [--option value ...]", __doc__)
    parser.add_argument("task", metavar="TASK", help="a task's name, or the path of a task file")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the task")
    parser.add_argument("--template", default="tinyzero", choices=TEMPLATES, help="prompt template")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="examples to show of each split")
    parser.add_argument(
        "--attack", action="store_true", help="try hostile answers; exit 1 on a wrong verdict"
    )
    args = parser.parse_args(argv)
    if bad := [option for option in args.options if "=" not in option]:
        raise UserError(f"Options of a task are written key=value, e.g. numbers=4; got {bad[0]!r}.")
    if args.n < 0:
        raise UserError(f"-n {args.n}: give the number of examples to show of each split, 0 or more.")
    options = dict(option.split("=", 1) for option in args.options)
    try:
        task, name = load(args.task), Path(args.task).stem
        if args.attack:
            return min(1, attack(task, name, options))
        show(task, name, options, args.template, args.n)
        return 0
    except BrokenPipeError:
        # as after `python tinyr1.py tasks NAME | head`
        sys.exit(1)
    except (TaskError, UserError):
        raise
    except (Exception, SystemExit) as error:
        raise task_failure(args.task, error) from error


def task_failure(task: str, error: BaseException) -> TaskError:
    """What to tell the author of a task about an exception that its code caused."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).stem == Path(task).stem]
    # this module may have the task's name
    own = [frame for frame in own if frame.filename != __file__]
    if not own:
        return TaskError(
            f"examples() or question() of the task {task} returned what cannot be used "
            f"({type(error).__name__}: {error}); expected an iterator of dicts, and a text."
        )
    where = own[-1]
    return TaskError(
        f"The task {task} fails in {where.name}, line {where.lineno} of {where.filename}: "
        f"{type(error).__name__}: {error}. Correct it there."
    )
