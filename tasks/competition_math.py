r"""Competition mathematics, as in MATH: an answer is a number, an expression, an interval and so on.

    A fair die is thrown twice. What is the probability that the sum is 9?
    <think>(3,6), (4,5), (5,4), (6,3): 4 of 36.</think>
    The probability is \boxed{\frac{1}{9}}.

Only the last \boxed{} after the thinking counts. It is compared with the gold answer as text, then by its
structure, by the values of its formulas and as a set of real numbers (`answers.py`, `algebra.py` and
`regions.py` in `_math/`). The time is bounded by construction: nothing is simplified, solved or searched.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any

from tasks import (
    BadRow,
    Example,
    Options,
    TaskError,
    Verdict,
    after_thinking,
    check_options,
    choose,
    extract_answer,
    held_out,
    last_box,
    read_rows,
)
from tasks._math.answers import same, squeeze
from tasks._math.latex import MAX_LENGTH, TooComplex

# Rewards of an answer that is (correct, there but wrong, not there).
REWARDS = {
    "simplerl": (1.0, -0.5, -1.0),
    "binary": (1.0, 0.0, 0.0),
}
WORDINGS = {
    # For a template that asks for the format, as qwen-math does.
    "plain": "{problem}",
    "boxed": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "answer": "{problem}\nShow your work in <think> </think> tags. And return the final answer in <answer> "
    "</answer> tags, for example <answer> \\frac{1}{2} </answer>.",
}
OPTIONS: Options = {
    # A name in SETS, a hub id, or a file of rows {problem | question, answer | solution, ...}.
    "data": "",
    # The test problems of a file: one in ten; or "all", for a file that is an evaluation set.
    "test": "tenth",
    # Only these levels: "5", "3-5" (SimpleRL's 8K), "1,2"; rows without a level are left out.
    "levels": "",
    # Only these subjects: "Algebra,Number Theory".
    "subjects": "",
    # Where the answer is: "boxed", or "answer" for <answer> tags.
    "format": "boxed",
    "wording": "plain",
    "reward": "simplerl",
    # Of the order of the training problems.
    "seed": 0,
    # The number of examples. 0: train is endless, test has all.
    "limit": 0,
}
CHOICES = {
    "format": ("boxed", "answer"),
    "wording": tuple(WORDINGS),
    "reward": tuple(REWARDS),
    "test": ("tenth", "all"),
}
# The options that a template needs, unless the user gives others.
FOR_TEMPLATE = {
    "r1": {"format": "answer"},
    "tinyzero": {"format": "answer", "wording": "answer"},
    "chat": {"wording": "boxed"},
    "none": {"wording": "boxed"},
}
MATH_CONFIGS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
# name: (hub id, its configurations, split to train on, split to evaluate on)
SETS: dict[str, tuple[str, tuple[str | None, ...], str | None, str]] = {
    "math500": ("HuggingFaceH4/MATH-500", (None,), None, "test"),
    "aime24": ("HuggingFaceH4/aime_2024", (None,), None, "train"),
    "amc23": ("math-ai/amc23", (None,), None, "test"),
    "gsm8k": ("openai/gsm8k", ("main",), "train", "test"),
    "math": ("EleutherAI/hendrycks_math", MATH_CONFIGS, "train", "test"),
    "math-lighteval": ("DigitalLearningGmbH/MATH-lighteval", (None,), "train", "test"),
}
# Of rows as MATH, GSM8K, DeepMath, SimpleRL and verl have them.
FIELDS = ("problem|question|prompt|extra_info", "answer|final_answer|reward_model|solution")
MORE_FIELDS = ("level", "subject", "type")


# ---------------------------------------------------------------- problems


def examples(split: str, **options: Any) -> Iterator[Example]:
    """Iterator of {"problem", "answer", "level", "subject", "format", "wording", "reward"}; see OPTIONS.

    A set of SETS has its own splits; a file's test problems are one in ten, the same ones however it is
    sorted or filtered. Errors: TaskError.
    """
    o = check_options(split, options, OPTIONS, CHOICES)
    if not o["data"]:
        raise TaskError(
            "competition_math ships no problems: say data=NAME, one of "
            f"{', '.join(SETS)}, or data=FILE, a .jsonl or .parquet file of rows {{problem, answer}}."
        )
    problems = _filtered(_problems(split, o["data"], o["test"]), o)
    if not problems:
        filtered = o["levels"] or o["subjects"]
        why = "with these levels and subjects" if filtered else f"(test={o['test']})"
        raise TaskError(f"data={o['data']} has no {split} problems {why}.")
    if split == "train":
        orders = (random.Random(f"mathematics {o['seed']} {epoch}") for epoch in count())
        stream = (problem for rng in orders for problem in rng.sample(problems, len(problems)))
    else:
        # In an order that mixes the subjects.
        stream = (problem for problem in random.Random("mathematics test").sample(problems, len(problems)))
    limited = islice(stream, o["limit"]) if o["limit"] else stream
    style = {name: o[name] for name in ("format", "wording", "reward")}
    return ({**problem, **style} for problem in limited)


def question(example: Example) -> str:
    """The user's text, in the wording that the example names."""
    wording = WORDINGS[(OPTIONS | example)["wording"]]
    return wording.replace("{problem}", str(example["problem"]))


@lru_cache(maxsize=4)
def _problems(split: str, data: str, test: str) -> list[Example]:
    """The problems of a split, of a set of SETS, a hub id or a file. Errors: TaskError."""
    name = next((name for name, (hub, *_) in SETS.items() if data in (name, hub)), None)
    if name is None or Path(data).exists():
        rows = _rows(data)
        everything = test == "all"
        return [row for row in rows if (everything or held_out("math", row["problem"])) == (split == "test")]
    hub, configs, train, evaluation = SETS[name]
    if split == "train" and train is None:
        raise TaskError(f"data={name} is for evaluation only. Train on data=math, or on a file of your own.")
    remedy = _remedy(name)
    rows = [row for config in configs for row in _rows(hub, config, evaluation, remedy)]
    if split == "test" or train is None:
        return rows
    known = {row["problem"] for row in rows}
    found = [row for config in configs for row in _rows(hub, config, train, remedy)]
    return [row for row in found if row["problem"] not in known]


def _remedy(name: str) -> str:
    """How to get the evaluation set of that name without the hub."""
    hub, configs, _, split = SETS[name]
    folder = f"{configs[0]}/" if configs[0] else ""
    together = " (for a set of several files, join their rows into one)" if len(configs) > 1 else ""
    return (
        f"run `hf download {hub} --repo-type dataset --local-dir DIR`, copy its {folder}{split} file "
        f"(.parquet or .jsonl) to this machine{together} and pass data=FILE test=all"
    )


def _rows(
    source: str | Path, config: str | None = None, split: str = "train", remedy: str = ""
) -> list[Example]:
    """[{"problem", "answer", "level", "subject"}] of a file or of the hub. Errors: TaskError."""
    return read_rows(source, FIELDS, MORE_FIELDS, config, split, remedy, convert=_problem)


def _problem(row: dict[str, Any]) -> Example:
    row = _plain_fields(row)
    names = ("problem", "question", "prompt")
    texts = [row[name] for name in names if isinstance(row.get(name), str) and row[name].strip()]
    if not texts:
        raise BadRow("has no problem text: expected it in `problem`, `question` or `prompt`")
    level = re.search("[0-9]+", str(row.get("level")))
    return {
        "problem": texts[0],
        "answer": gold_answer(row),
        "level": int(level[0]) if level else None,
        "subject": row.get("subject") or row.get("type"),
    }


def _plain_fields(row: dict[str, Any]) -> dict[str, Any]:
    """verl's layout in the fields of the others: `reward_model.ground_truth` is the answer, the last message
    of the user in `prompt` is the problem, and `extra_info` gives the fields that the row itself lacks.
    """
    fields = dict(row["extra_info"]) if isinstance(row.get("extra_info"), dict) else {}
    if isinstance(row.get("reward_model"), dict):
        fields["answer"] = row["reward_model"].get("ground_truth")
    fields |= {name: value for name, value in row.items() if value is not None}
    if isinstance(fields.get("prompt"), list):
        messages = [message for message in fields["prompt"] if isinstance(message, dict)]
        said = [message.get("content") for message in messages if message.get("role") == "user"]
        fields["prompt"] = said[-1] if said else None
    return fields


# \boxed 3, as in some of MATH's solutions: the rest of the formula is the answer.
BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z]|\s*\{)\s*([^$\n]+?)\.?\s*(?=\$|\\[)\]\\]|\\end\b|\n|\Z)")


def gold_answer(row: dict[str, Any]) -> str:
    """The answer of a row as text: its `answer` or `final_answer` (after #### as in GSM8K, or boxed), else
    the last box of its `solution`. Errors: BadRow.
    """
    given = [row[name] for name in ("answer", "final_answer") if row.get(name) not in (None, "")]
    answer = given[0] if given else _boxed(str(row.get("solution") or "")) or ""
    if isinstance(answer, list):
        if len(answer) != 1:
            raise BadRow(f"has {len(answer)} answers: expected one")
        answer = answer[0]
    usable = isinstance(answer, (str, int, float)) and not isinstance(answer, bool)
    if not usable or isinstance(answer, float) and not math.isfinite(answer):
        raise BadRow(f"has the answer {answer!r}: expected a text or a finite number")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    text = str(answer).rpartition("####")[2].strip()
    if not text:
        raise BadRow("has no answer: expected an `answer`, or a `solution` with a \\boxed{} in it")
    return _boxed(text) or text


def _boxed(text: str) -> str | None:
    return last_box(BARE_BOX.sub(r"\\boxed{\1}", text))


def _filtered(problems: list[Example], o: Options) -> list[Example]:
    """The problems with the levels and subjects that are wanted. Errors: TaskError."""
    if o["levels"]:
        levels: set[int] = set()
        for part in o["levels"].split(","):
            if not (ends := re.fullmatch(r"\s*([0-9]+)(?:-([0-9]+))?\s*", part)):
                raise TaskError(f"Task option levels={o['levels']!r}: expected 5, 3-5 or 1,2.")
            levels |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
        problems = [problem for problem in problems if problem["level"] in levels]
    if o["subjects"]:
        known = {_key(problem["subject"]): problem["subject"] for problem in problems if problem["subject"]}
        subjects = {choose("subject", _key(part), known) for part in o["subjects"].split(",")}
        problems = [problem for problem in problems if _key(problem["subject"]) in subjects]
    return problems


def _key(subject: str) -> str:
    return re.sub("[^a-z]+", "_", str(subject).strip().lower().replace("&", "and"))


# ---------------------------------------------------------------- the verifier


def reward(completion: str, example: Example) -> Verdict:
    r"""{"reward", "correct", "answered", "answer", "verifier_error"} of any text, without an exception.

    "answer" is for a majority vote, in which answers that are `equivalent` count as one. Where the verifier
    itself fails, "verifier_error" is 1.0, the answer counts as wrong, and "error" says why.
    """
    completion = completion if isinstance(completion, str) else ""
    right, wrong, none = REWARDS[(OPTIONS | example)["reward"]]
    answer = stated(completion, (OPTIONS | example)["format"])
    if answer is None:
        return {"reward": none, "correct": False, "answered": 0.0, "answer": None, "verifier_error": 0.0}
    gold, error = str(example["answer"]), ""
    try:
        correct = verify(gold, answer)
    # A fault of the verifier must not end a run.
    except Exception as failure:
        correct, error = False, f"{type(failure).__name__}: {failure}"
    return {
        "reward": right if correct else wrong,
        "correct": correct,
        "answered": 1.0,
        "answer": gold if correct else " ".join(answer.split())[:MAX_LENGTH],
        "verifier_error": float(bool(error)),
        **({"error": error} if error else {}),
    }


def stated(completion: str, form: str = "boxed") -> str | None:
    """The answer that a completion states after its thinking, in boxes or in tags; None if there is none."""
    return last_box(after_thinking(completion)) if form == "boxed" else extract_answer(completion)


def verify(gold: str, answer: str) -> bool:
    """Whether `answer` says the same as `gold`."""
    answer = " ".join(answer.split())
    return _verify(gold, answer) if len(answer) <= MAX_LENGTH else squeeze(gold) == squeeze(answer)


@lru_cache(maxsize=1 << 16)
def _verify(gold: str, answer: str) -> bool:
    try:
        return same(gold, answer)
    except (TooComplex, RecursionError):
        return False


def equivalent(a: str, b: str) -> bool:
    """Whether two answers, as `stated` gives them, count as one in a majority vote."""
    try:
        return verify(a, b) or verify(b, a)
    # As in `reward`.
    except Exception:
        return False


# ---------------------------------------------------------------- for `python tinyr1.py tasks NAME --attack`


def gold(example: Example) -> str:
    """A right answer."""
    return str(example["answer"])


def state(answer: str, example: Example) -> str:
    """A completion that states this answer."""
    boxed = (OPTIONS | example)["format"] == "boxed"
    return f"\\boxed{{{answer}}}" if boxed else f"<answer>{answer}</answer>"
