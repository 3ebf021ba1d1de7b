"""Multiplication: a*b, the digits of each factor as options.

    What is 23*47?
    <think>23*40=920
    23*7=161
    920+161=1081</think>
    <answer>1081</answer>

Stated at once, a product is mostly wrong; taken apart by the distributive law, it is mostly right. Nobody
says so: reinforcement learning has to find it out, and `behaviours` measures whether it does.
"""

import random
import re
from itertools import count, islice
from itertools import product as pairs_of

from tasks import TAIL, TaskError, choose, extract_answer, held_out, read_options
from tasks._text.arithmetic import MAX_LENGTH, evaluate
from tasks._text.products import behaviours, plain

# Rewards of an answer that is (correct, there but wrong, not there).
REWARDS = {
    "tinyzero": (1.0, 0.1, 0.0),
    "simplerl": (1.0, -0.5, -1.0),
    "binary": (1.0, 0.0, 0.0),
}
WORDINGS = {
    "tinyzero": "What is {a} * {b}? Show your work in <think> </think> tags. And return the final answer in "
    "<answer> </answer> tags, for example <answer> 42 </answer>.",
    "short": "What is {a}*{b}?",  # as the miniature base has read it
    "plain": "What is {a} * {b}?",  # asks for no tags: without them the last number of the response counts
}
OPTIONS = {
    "digits": "2x2",  # of the factors: "3x2" is three digits by two, "1-3x2" one to three by two
    "low": 0,  # instead: both factors in low..high, such as the tables from 2 to 12
    "high": 0,
    "held": 0,  # so many pairs for the test, a*b and b*a being one pair; 0: a tenth of them, by `is_test`
    "reward": "tinyzero",
    "wording": "tinyzero",
    "seed": 0,  # of the training stream; the test problems are the same for every seed
    "limit": 0,  # at most so many examples; 0: train is endless, test has TEST_SIZE
}
REPLACES = {"digits": ("low", "high"), "low": ("digits",), "high": ("digits",)}
TEST_SIZE = 1_000
ENUMERABLE = 20_000  # problems up to which the test is listed in full, instead of drawn
MAX_DRAWS = 10_000  # in vain, before the ranges are taken to hold no problem
LAST_NUMBER_WITHIN = 2_000  # characters at a response's end, where no tags are asked for


# ---------------------------------------------------------------- problems


def examples(split, **options):
    """Iterator of {"a", "b", "reward", "wording"}; for the options see OPTIONS. Errors: TaskError."""
    choose("split", split, ("train", "test"))
    o = read_options(options, OPTIONS)
    style = {
        "reward": choose("reward", o["reward"], REWARDS),
        "wording": choose("wording", o["wording"], WORDINGS),
    }
    if o["limit"] < 0:
        raise TaskError(f"Task option limit={o['limit']}: expected a number of examples, or 0 for no limit.")
    problems = _problems(split, _factors(o, options), o)
    limited = islice(problems, o["limit"]) if o["limit"] else problems
    return ({"a": a, "b": b, **style} for a, b in limited)


def question(example):
    """The user's text, in the wording that the example carries."""
    return WORDINGS[example.get("wording", OPTIONS["wording"])].format(**example)


def parse(text):
    """{"a", "b"} of a problem typed by hand: 23*47. Errors: TaskError."""
    found = re.fullmatch(r"\D*([0-9]{1,9}) ?(?:[*×·x]|times) ?([0-9]{1,9})\D*", text)
    if not found:
        raise TaskError(f"{text!r} is no problem: give two factors, such as 23*47.")
    return {"a": int(found[1]), "b": int(found[2])}


def is_test(a, b):
    """Whether a*b belongs to the test split: in either order, and no multiple of ten.

    Partial products are multiples of ten, and the documents that the miniature base has read contain them.
    """
    return a % 10 > 0 and b % 10 > 0 and held_out("multiplication", *sorted((a, b)))


def _factors(o, options):
    """Of each of the two factors: the ranges it is drawn from, one a number of digits. Errors: TaskError."""
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


def _problems(split, factors, o):
    size = [sum(map(len, ranges)) for ranges in factors]
    small = size[0] * size[1] <= ENUMERABLE
    every = [[n for numbers in ranges for n in numbers] for ranges in factors] if small else None
    if o["held"]:
        if not small:
            raise TaskError(
                f"Task option held={o['held']} is for factors that make at most {ENUMERABLE} problems."
            )
        pairs = sorted({tuple(sorted(pair)) for pair in pairs_of(*every)})
        if not 0 < o["held"] < len(pairs):
            raise TaskError(f"Task option held={o['held']}: expected 1 to {len(pairs) - 1} pairs, or 0.")
        chosen = {*random.Random("multiplication held").sample(pairs, o["held"])}
    belongs = (lambda a, b: tuple(sorted((a, b))) in chosen) if o["held"] else is_test

    def draw(rng):
        for _ in range(MAX_DRAWS):
            a, b = (rng.choice(rng.choice(ranges)) for ranges in factors)
            if belongs(a, b) == (split == "test"):
                return a, b
        raise TaskError(f"Found no {split} problem with these factors: widen a range.")

    if split == "train":
        draw(random.Random(0))  # an error now, not at the first step
        rng = random.Random(f"multiplication train {o['seed']}")
        return (draw(rng) for _ in count())
    rng, most = random.Random("multiplication test"), o["limit"] or TEST_SIZE
    if not small:
        return islice({draw(rng): None for _ in range(2 * most)}, most)
    held = [pair for pair in pairs_of(*every) if belongs(*pair)]
    if not held:
        draw(rng)
    return iter(rng.sample(held, min(most, len(held))))


# ---------------------------------------------------------------- the verifier

LEAD = re.compile(  # what may stand in front of the number or the equation
    r"\A(?:[a-z] ?(?==)|(?:(?:so|thus|therefore|hence),? )?(?:the )?"
    r"(?:(?:final )?(?:answer|product|result)(?: is|:| ?=)+)?)"
)
NUMBER = re.compile(r"(?<![\w.])-?[0-9]+(?:\.[0-9]+)?(?![\w%])")


def reward(completion, example):
    """{"reward", "correct", "answered", "answer", what `behaviours` finds} of any text, without an exception.

    "answer" is for a majority vote: 1,081 and 23*47 = 1081.0 are the same answer, 1081.
    """
    completion = completion if isinstance(completion, str) else ""
    right, wrong, none = REWARDS[example.get("reward", OPTIONS["reward"])]
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


def gold(example):
    """An answer that is right."""
    return str(example["a"] * example["b"])


def state(answer, example):
    """A completion that states this answer."""
    return f"<answer>{answer}</answer>"


def stated(answer):
    """The integer that `answer` states, alone or in an equation that holds; None of any other text.

    23*47 alone states none: the answer is a number, not a way to it.
    """
    if len(answer) > MAX_LENGTH:
        return None
    text = LEAD.sub("", plain(answer).strip(" .\n"), count=1).strip().removeprefix("=")
    sides = [evaluate(side) for side in text.split("=")]
    if None in sides or len({value for value, *_ in sides}) > 1:
        return None
    return next((number for _, (number, *more), _ in sides if not more), None)


def last_number(completion):
    """The last number behind the thinking, as plain text; None where there is none."""
    text = completion[-TAIL:].rpartition("</think>")[2]
    found = NUMBER.findall(plain(text[-LAST_NUMBER_WITHIN:])) if "<think>" not in text else ()
    return found[-1] if found else None
