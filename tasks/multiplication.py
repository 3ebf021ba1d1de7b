"""Multiplication: a*b, the digits of each factor as options.

    What is 23*47?
    <think>23*40=920
    23*7=161
    920+161=1081</think>
    <answer>1081</answer>

A product that a model states at once is mostly wrong; one that it takes apart by the distributive law is
mostly right. Reinforcement learning has to discover this, and `behaviours` measures whether it does.
"""

import random
import re
from collections.abc import Callable, Iterator
from itertools import count, islice
from itertools import product as pairs_of
from typing import Any

from tasks import TAIL, Example, Options, TaskError, Verdict, check_options, extract_answer, held_out
from tasks._text.arithmetic import MAX_LENGTH, evaluate
from tasks._text.products import behaviours, plain

# Two factors.
Pair = tuple[int, int]

# Rewards of an answer that is (correct, there but wrong, not there).
REWARDS = {
    "tinyzero": (1.0, 0.1, 0.0),
    "simplerl": (1.0, -0.5, -1.0),
    "binary": (1.0, 0.0, 0.0),
}
WORDINGS = {
    "tinyzero": "What is {a} * {b}? Show your work in <think> </think> tags. And return the final answer in "
    "<answer> </answer> tags, for example <answer> 42 </answer>.",
    # As in the miniature's pre-training.
    "short": "What is {a}*{b}?",
    # It asks for no tags: where there are none, the last number of the response counts.
    "plain": "What is {a} * {b}?",
}
OPTIONS: Options = {
    # Of the factors: "3x2" is three digits by two, "1-3x2" one to three by two.
    "digits": "2x2",
    # Instead of digits: both factors are in low..high, such as the tables from 2 to 12.
    "low": 0,
    "high": 0,
    # The number of pairs in the test, where a*b and b*a are one pair. 0: a tenth of all, chosen by `is_test`.
    "held": 0,
    "reward": "tinyzero",
    "wording": "tinyzero",
    # Of the training stream; the test problems are the same for every seed.
    "seed": 0,
    # The number of examples. 0: train is endless, test has TEST_SIZE.
    "limit": 0,
}
REPLACES = {"digits": ("low", "high"), "low": ("digits",), "high": ("digits",)}
TEST_SIZE = 1_000
# With up to so many problems, the test is listed in full instead of drawn.
ENUMERABLE = 20_000
# Draws without success after which the ranges are taken to hold no problem.
MAX_DRAWS = 10_000
# Where no tags are asked for: the characters at a response's end in which the last number is looked for.
LAST_NUMBER_WITHIN = 2_000


# ---------------------------------------------------------------- problems


def examples(split: str, **options: Any) -> Iterator[Example]:
    """Iterator of {"a", "b", "reward", "wording"}; for the options see OPTIONS. Errors: TaskError."""
    o = check_options(split, options, OPTIONS, {"reward": REWARDS, "wording": WORDINGS})
    problems = _problems(split, _factors(o, options), o)
    limited = islice(problems, o["limit"]) if o["limit"] else problems
    style = {name: o[name] for name in ("reward", "wording")}
    return ({"a": a, "b": b, **style} for a, b in limited)


def question(example: Example) -> str:
    """The user's text, in the wording that the example names."""
    return WORDINGS[(OPTIONS | example)["wording"]].format(**example)


def parse(text: str) -> Example:
    """{"a", "b"} of a problem typed by the user, such as 23*47. Errors: TaskError."""
    found = re.fullmatch(r"\D*([0-9]{1,9}) ?(?:[*×·x]|times) ?([0-9]{1,9})\D*", text)
    if not found:
        raise TaskError(f"{text!r} is no problem: give two factors, such as 23*47.")
    return {"a": int(found[1]), "b": int(found[2])}


def is_test(a: int, b: int) -> bool:
    """Whether a*b is in the test split; the order does not matter, and no factor is a multiple of ten.

    Partial products have such factors, and the miniature's pre-training contains them.
    """
    return a % 10 > 0 and b % 10 > 0 and held_out("multiplication", *sorted((a, b)))


def _factors(o: Options, options: Options) -> list[list[range]]:
    """For both factors: the ranges they are drawn from, one per number of digits. Errors: TaskError."""
    low, high = o["low"], o["high"]
    if low or high:
        if options.get("digits") is not None:
            raise TaskError(f"Task options digits={o['digits']} and low..high exclude each other.")
        if not 1 <= low <= high:
            raise TaskError(f"Multiplication needs 1 <= low <= high, not low={low} high={high}.")
        return [[range(low, high + 1)]] * 2
    counts = re.fullmatch(r"([1-6])(?:-([1-6]))?x([1-6])(?:-([1-6]))?", o["digits"])
    bounds = counts and [(int(counts[i]), int(counts[i + 1] or counts[i])) for i in (1, 3)]
    if not bounds or any(least > most for least, most in bounds):
        raise TaskError(
            f"Task option digits={o['digits']!r}: expected 2x2, 3x2 or 1-3x2 (1 to 6 digits each)."
        )
    return [[range(max(2, 10 ** (n - 1)), 10**n) for n in range(least, most + 1)] for least, most in bounds]


def _problems(split: str, factors: list[list[range]], o: Options) -> Iterator[Pair]:
    """Problems with factors from these ranges. Errors: TaskError."""
    size = [sum(map(len, ranges)) for ranges in factors]
    small = size[0] * size[1] <= ENUMERABLE
    every = _pairs(factors) if small else []
    belongs = _chosen(o["held"], every) if o["held"] else is_test

    def draw(rng: random.Random) -> Pair:
        for _ in range(MAX_DRAWS):
            a, b = (rng.choice(rng.choice(ranges)) for ranges in factors)
            if belongs(a, b) == (split == "test"):
                return a, b
        raise TaskError(f"Found no {split} problem with these factors: widen a range.")

    if split == "train":
        # Ranges that hold no problem are an error now, not at the first step.
        draw(random.Random(0))
        rng = random.Random(f"multiplication train {o['seed']}")
        return (draw(rng) for _ in count())
    rng, most = random.Random("multiplication test"), o["limit"] or TEST_SIZE
    if not small:
        return islice({draw(rng): None for _ in range(2 * most)}, most)
    held = [pair for pair in every if belongs(*pair)]
    if not held:
        draw(rng)
    return iter(rng.sample(held, min(most, len(held))))


def _pairs(factors: list[list[range]]) -> list[Pair]:
    first, second = ([n for numbers in ranges for n in numbers] for ranges in factors)
    return list(pairs_of(first, second))


def _chosen(held: int, every: list[Pair]) -> Callable[[int, int], bool]:
    """Whether a*b is one of `held` pairs, drawn from all problems, in either order. Errors: TaskError."""
    if not every:
        raise TaskError(f"Task option held={held} is for factors that make at most {ENUMERABLE} problems.")
    pairs = sorted({(min(pair), max(pair)) for pair in every})
    if not 0 < held < len(pairs):
        raise TaskError(f"Task option held={held}: expected 1 to {len(pairs) - 1} pairs, or 0.")
    chosen = {*random.Random("multiplication held").sample(pairs, held)}
    return lambda a, b: (min(a, b), max(a, b)) in chosen


# ---------------------------------------------------------------- the verifier

# What may precede the number or the equation.
LEAD = re.compile(
    r"\A(?:[a-z] ?(?==)|(?:(?:so|thus|therefore|hence),? )?(?:the )?"
    r"(?:(?:final )?(?:answer|product|result)(?: is|:| ?=)+)?)"
)
NUMBER = re.compile(r"(?<![\w.])-?[0-9]+(?:\.[0-9]+)?(?![\w%])")


def reward(completion: str, example: Example) -> Verdict:
    """{"reward", "correct", "answered", "answer", what `behaviours` finds} of any text, without an exception.

    "answer" is for a majority vote: 1,081 and 23*47 = 1081.0 are the same answer, 1081.
    """
    completion = completion if isinstance(completion, str) else ""
    right, wrong, none = REWARDS[(OPTIONS | example)["reward"]]
    a, b, answer = example["a"], example["b"], extract_answer(completion)
    if answer is None and example.get("wording") == "plain":
        answer = last_number(completion)
    value = stated(answer) if answer else None
    correct = value == a * b
    return {
        "reward": right if correct else none if answer is None else wrong,
        "correct": correct,
        "answered": float(answer is not None),
        "answer": answer if value is None else str(value),
        **behaviours(completion, a, b, value),
    }


def gold(example: Example) -> str:
    """A right answer."""
    return str(example["a"] * example["b"])


def state(answer: str, example: Example) -> str:
    """A completion that states this answer."""
    return f"<answer>{answer}</answer>"


def stated(answer: str) -> int | None:
    """The integer that `answer` states, alone or in an equation that holds; None of any other text.

    23*47 alone states none: the answer is a number, not a way to it.
    """
    if len(answer) > MAX_LENGTH:
        return None
    text = LEAD.sub("", plain(answer).strip(" .\n"), count=1).strip().removeprefix("=")
    sides = [evaluate(side) for side in text.split("=")]
    known = [side for side in sides if side]
    if len(known) < len(sides) or len({side.value for side in known}) > 1:
        return None
    return next((side.numbers[0] for side in known if len(side.numbers) == 1), None)


def last_number(completion: str) -> str | None:
    """The last number after the thinking, as plain text; None where there is none."""
    text = completion[-TAIL:].rpartition("</think>")[2]
    found = NUMBER.findall(plain(text[-LAST_NUMBER_WITHIN:])) if "<think>" not in text else []
    return found[-1] if found else None
