r"""Competition mathematics: MATH and its kin; an answer is a number, an expression, an interval and so on.

    A fair die is thrown twice. What is the probability that the sum is 9?
    <think>(3,6), (4,5), (5,4), (6,3): 4 of 36.</think>
    The probability is \boxed{\frac{1}{9}}.

Only the last \boxed{} after the thinking counts. It is compared with the gold answer as text, then by its
structure (`_answers.py`), by the values of its formulas (`_algebra.py`) and as a set of real numbers
(`_regions.py`). No answer takes long, by construction: nothing is simplified, solved or searched for.
"""

import random
import re
from functools import lru_cache
from itertools import count, islice
from pathlib import Path

from tasks import TAIL, TaskError, after_thinking, choose, extract_answer, held_out, read_options, read_rows
from tasks._answers import same, squeeze
from tasks._latex import MAX_LENGTH, TooComplex

# Rewards of an answer that is (correct, there but wrong, not there).
REWARDS = {
    "simplerl": (1.0, -0.5, -1.0),
    "binary": (1.0, 0.0, 0.0),
}
WORDINGS = {
    "plain": "{problem}",  # where the template asks for the format, as qwen-math does
    "boxed": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "answer": "{problem}\nShow your work in <think> </think> tags. And return the final answer in <answer> "
    "</answer> tags, for example <answer> \\frac{1}{2} </answer>.",
}
OPTIONS = {
    "data": "",  # a name in SETS, a hub id, or a file: rows {problem | question, answer | solution, ...}
    "test": "tenth",  # of a file: its test problems; "all" for a file that is an evaluation set
    "levels": "",  # only these: "5", "3-5" (SimpleRL's 8K), "1,2"; rows without a level are left out
    "subjects": "",  # only these: "Algebra,Number Theory"
    "format": "boxed",  # where the answer stands: "boxed", or "answer" for <answer> tags
    "wording": "plain",
    "reward": "simplerl",
    "seed": 0,  # of the order of the training problems
    "limit": 0,  # at most so many examples; 0: train is endless, test has all
}
FOR_TEMPLATE = {  # what a template asks for, unless the options say otherwise
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
SETS = {
    "math500": ("HuggingFaceH4/MATH-500", [None], None, "test"),
    "aime24": ("HuggingFaceH4/aime_2024", [None], None, "train"),
    "amc23": ("math-ai/amc23", [None], None, "test"),
    "gsm8k": ("openai/gsm8k", ["main"], "train", "test"),
    "math": ("EleutherAI/hendrycks_math", MATH_CONFIGS, "train", "test"),
    "math-lighteval": ("DigitalLearningGmbH/MATH-lighteval", [None], "train", "test"),
}
FIELDS = ("problem|question", "answer|solution")
MORE_FIELDS = ("solution", "level", "subject", "type")


# ---------------------------------------------------------------- problems


def examples(split, **options):
    """Iterator of {"problem", "answer", "level", "subject", "format", "wording", "reward"}; see OPTIONS.

    A set of SETS has its own splits; a file's test problems are one in ten, the same ones however it is
    sorted or filtered. Errors: TaskError.
    """
    choose("split", split, ("train", "test"))
    o = read_options(options, OPTIONS)
    style = {
        "format": choose("format", o["format"], ("boxed", "answer")),
        "wording": choose("wording", o["wording"], WORDINGS),
        "reward": choose("reward", o["reward"], REWARDS),
    }
    choose("test", o["test"], ("tenth", "all"))
    if o["limit"] < 0:
        raise TaskError(f"Task option limit={o['limit']}: expected a number of examples, or 0 for no limit.")
    if not o["data"]:
        raise TaskError(
            "competition_math ships no problems: say data=NAME, one of "
            f"{', '.join(SETS)}, or data=FILE, a .jsonl or .parquet file of rows {{problem, answer}}."
        )
    problems = _filtered(_problems(split, o["data"], o["test"]), o)
    if not problems:
        raise TaskError(
            f"data={o['data']} has no {split} problems"
            + (
                " with these levels and subjects."
                if o["levels"] or o["subjects"]
                else f" (test={o['test']})."
            )
        )
    if split == "train":
        orders = (random.Random(f"mathematics {o['seed']} {epoch}") for epoch in count())
        stream = (problem for rng in orders for problem in rng.sample(problems, len(problems)))
    else:
        stream = iter(random.Random("mathematics test").sample(problems, len(problems)))  # of all subjects
    limited = islice(stream, o["limit"]) if o["limit"] else stream
    return ({**problem, **style} for problem in limited)


def question(example):
    """The user's text, in the wording that the example carries."""
    wording = WORDINGS[example.get("wording", OPTIONS["wording"])]
    return wording.replace("{problem}", example["problem"])


@lru_cache(maxsize=4)
def _problems(split, data, test):
    name = next((name for name, (hub, *_) in SETS.items() if data in (name, hub)), None)
    if name is None or Path(data).exists():
        rows = _rows(data)
        everything = test == "all"
        return [row for row in rows if (everything or held_out("math", row["problem"])) == (split == "test")]
    hub, configs, train, evaluation = SETS[name]
    if split == "train" and train is None:
        raise TaskError(f"data={name} is for evaluation only. Train on data=math, or on a file of your own.")
    how = dict(remedy=_remedy(name))
    rows = [row for config in configs for row in _rows(hub, config=config, split=evaluation, **how)]
    if split == "train":
        known = {row["problem"] for row in rows}
        found = [row for config in configs for row in _rows(hub, config=config, split=train, **how)]
        return [row for row in found if row["problem"] not in known]
    return rows


def _remedy(name):
    hub, configs, _, split = SETS[name]
    folder = f"{configs[0]}/" if configs[0] else ""
    together = " (for a set of several files, join their rows into one)" if len(configs) > 1 else ""
    return (
        f"run `hf download {hub} --repo-type dataset --local-dir DIR`, bring its {folder}{split} file "
        f"(.parquet or .jsonl) here{together} and pass data=FILE test=all"
    )


def _rows(source, **where):
    """[{"problem", "answer", "level", "subject"}] of a file or of the hub. Errors: TaskError."""
    problems = []
    for number, row in enumerate(read_rows(source, FIELDS, MORE_FIELDS, **where), 1):
        problem, answer = row.get("problem") or row.get("question"), gold_answer(row)
        if not isinstance(problem, str) or not answer:
            raise TaskError(
                f"Row {number} of {str(source)!r} has no problem text, or no answer: expected an `answer`, "
                "or a `solution` with a \\boxed{} in it."
            )
        level = re.search("[0-9]+", str(row.get("level")))
        problems.append(
            {
                "problem": problem,
                "answer": answer,
                "level": int(level[0]) if level else None,
                "subject": row.get("subject") or row.get("type"),
            }
        )
    return problems


def gold_answer(row):
    """The answer of a row: its `answer` (behind #### as in GSM8K, or boxed), else its solution's last box."""
    answer = row.get("answer")
    if answer is None:
        return last_box(str(row.get("solution") or ""))
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    answer = str(answer).rpartition("####")[2].strip()
    return last_box(answer) or answer


def _filtered(problems, o):
    if o["levels"]:
        wanted = set()
        for part in o["levels"].split(","):
            if not (ends := re.fullmatch(r"\s*([0-9]+)(?:-([0-9]+))?\s*", part)):
                raise TaskError(f"Task option levels={o['levels']!r}: expected 5, 3-5 or 1,2.")
            wanted |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
        problems = [problem for problem in problems if problem["level"] in wanted]
    if o["subjects"]:
        known = {_key(problem["subject"]): problem["subject"] for problem in problems if problem["subject"]}
        wanted = {choose("subject", _key(part), known) for part in o["subjects"].split(",")}
        problems = [problem for problem in problems if _key(problem["subject"]) in wanted]
    return problems


def _key(subject):
    return re.sub("[^a-z]+", "_", str(subject).strip().lower().replace("&", "and"))


# ---------------------------------------------------------------- the verifier


def reward(completion, example):
    r"""{"reward", "correct", "answered", "answer", "verifier_error"} of any text, without an exception.

    "answer" is for a majority vote, in which `equivalent` ones count together. A verifier that fails leaves
    the answer unrewarded, and says why in "error".
    """
    completion = completion if isinstance(completion, str) else ""
    right, wrong, none = REWARDS[example.get("reward", OPTIONS["reward"])]
    answer = stated(completion, example.get("format", OPTIONS["format"]))
    if answer is None:
        return {"reward": none, "correct": False, "answered": 0.0, "answer": None, "verifier_error": 0.0}
    gold, error = str(example["answer"]), ""
    try:
        correct = verify(gold, answer)
    except Exception as failure:  # a fault of the verifier, which no text may turn into the end of a run
        correct, error = False, f"{type(failure).__name__}: {failure}"
    return {
        "reward": right if correct else wrong,
        "correct": correct,
        "answered": 1.0,
        "answer": gold if correct else " ".join(answer.split())[:MAX_LENGTH],
        "verifier_error": float(bool(error)),
        **({"error": error} if error else {}),
    }


def stated(completion, form="boxed"):
    """The answer that a completion states behind its thinking, in boxes or in tags; None if there is none."""
    return last_box(after_thinking(completion)) if form == "boxed" else extract_answer(completion)


BOX = re.compile(
    r"\\(?:boxed|fbox)(?:\s*\{|\s*(-?[0-9](?:[0-9.,]*[0-9])?|\\frac\s*(?:[0-9]{2}|\{[^{}]*\}\s*\{[^{}]*\})"
    r"|\s[a-zA-Z](?![a-zA-Z])))|\\.|[{}]",
    re.DOTALL,
)


def last_box(text):
    r"""Content of the last closed \boxed{...}, the outermost of nested ones; None if there is none.

    Also of \boxed 3, without braces. An empty box counts where there is no other. Linear time, one pass with
    a stack of the open braces; only the last TAIL characters are read.
    """
    text, opened, found = text[-TAIL:], [], None
    for sign in BOX.finditer(text):
        content = sign[1]
        if sign[0][-1] == "{" and sign[0] != r"\{":
            opened.append(sign.end() if len(sign[0]) > 1 else None)
        elif sign[0] == "}" and opened and (start := opened.pop()) is not None:
            content = text[start : sign.start()]
        if content is not None:
            found = content.strip() or found or ""
    return found


def verify(gold, answer):
    """Whether `answer` says the same as `gold`."""
    answer = " ".join(answer.split())
    return _verify(gold, answer) if len(answer) <= MAX_LENGTH else squeeze(gold) == squeeze(answer)


@lru_cache(maxsize=1 << 16)
def _verify(gold, answer):
    try:
        return same(gold, answer)
    except (TooComplex, RecursionError):
        return False


def equivalent(a, b):
    """Whether two answers, as `stated` gives them, are the same: for a majority of equivalent ones."""
    try:
        return verify(a, b) or verify(b, a)
    except Exception:  # as in `reward`
        return False


# ---------------------------------------------------------------- for `python -m tasks NAME --attack`


def gold(example):
    """An answer that is right."""
    return example["answer"]


def state(answer, example):
    """A completion that states this answer."""
    boxed = example.get("format", OPTIONS["format"]) == "boxed"
    return f"\\boxed{{{answer}}}" if boxed else f"<answer>{answer}</answer>"
