"""Countdown: reach the target from the given numbers, each used exactly once, with + - * / and brackets.

    Make 16 from 3, 5, 8.
    <think>5+3=8, 8*8=64, want 16: no
    8+5=13, 13-3=10, want 16: no
    5-3=2, 8*2=16, want 16: yes
    </think>
    <answer>8*(5-3)</answer>

The game of TinyZero (https://github.com/Jiayi-Pan/TinyZero). It suits reinforcement learning: an answer is
easy to verify and hard to guess, and whoever tries, checks and tries again wins: `behaviours` counts that.
"""

import random
import re
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, count, islice
from math import comb

from tasks import BadRow, TaskError, choose, extract_answer, held_out, read_options, read_rows
from tasks._arithmetic import MAX_LENGTH, TYPOGRAPHIC, evaluate
from tasks._attempts import behaviours

# Rewards of an answer that is (correct, there but wrong, not there).
REWARDS = {
    "tinyzero": (1.0, 0.1, 0.0),
    "simplerl": (1.0, -0.5, -1.0),
    "binary": (1.0, 0.0, 0.0),
}
WORDINGS = {
    "tinyzero": "Using the numbers {nums}, create an equation that equals {target}. You can use basic "
    "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in <think> "
    "</think> tags. And return the final answer in <answer> </answer> tags, for example "
    "<answer> (1 + 2) / 3 </answer>.",
    "short": "Make {target} from {plain_nums}.",
}
OPTIONS = {
    "numbers": "3",  # how many numbers a problem has: "3", "4" or "3-4"
    "low": 1,  # the numbers lie in low..high
    "high": 10,
    "target_low": 10,  # and the target in target_low..target_high
    "target_high": 100,
    "data": "",  # instead of these: a file of rows {nums, target}, or TinyZero's on the hub: data=countdown34
    "test": "tenth",  # of a file: its test problems, the last tenth or 1,024; "all" for an evaluation set
    "reward": "tinyzero",
    "wording": "tinyzero",
    "seed": 0,  # of the training stream; the test problems are the same for every seed
    "limit": 0,  # at most so many examples; 0: train is endless, test has TEST_SIZE (a file: its test rows)
}
REPLACES = {"data": ("numbers", "low", "high", "target_low", "target_high")}
SETS = {"countdown34": "Jiayi-Pan/Countdown-Tasks-3to4"}
TEST_SIZE = 500
MAX_INTERMEDIATE = 150  # a generated problem has a solution whose steps stay within it (or target_high)
ENUMERABLE = 2_000  # multisets of numbers up to which the test problems are listed in full, instead of drawn
MAX_DRAWS = 10_000  # in vain, before the ranges are taken to hold no problem
TRAIN_ROWS, TEST_ROWS = 327_680, 1_024  # TinyZero's split of the hub data: the first rows, and the next


# ---------------------------------------------------------------- problems


def examples(split, **options):
    """Iterator of {"nums", "target", "reward", "wording"}; for the options see OPTIONS. Errors: TaskError."""
    choose("split", split, ("train", "test"))
    o = read_options(options, OPTIONS)
    style = {
        "reward": choose("reward", o["reward"], REWARDS),
        "wording": choose("wording", o["wording"], WORDINGS),
    }
    if o["limit"] < 0:
        raise TaskError(f"Task option limit={o['limit']}: expected a number of examples, or 0 for no limit.")
    if o["data"]:
        if unused := [name for name in REPLACES["data"] if options.get(name) is not None]:
            raise TaskError(
                f"With data={o['data']} the file's rows are the problems: leave out {', '.join(unused)} (or "
                "take the file away with data=)."
            )
        problems = _from_rows(split, SETS.get(o["data"], o["data"]), o["test"] == "all", o["seed"])
    else:
        problems = _generated(split, o)
    limited = islice(problems, o["limit"]) if o["limit"] else problems
    return ({"nums": list(nums), "target": target, **style} for nums, target in limited)


def question(example):
    """The user's text, in the wording that the example carries."""
    nums = example["nums"]
    wording = WORDINGS[example.get("wording", OPTIONS["wording"])]
    return wording.format(nums=list(nums), plain_nums=", ".join(map(str, nums)), target=example["target"])


def parse(text):
    """{"nums", "target"} of a problem typed by hand: 3 8 5 = 16. Errors: TaskError."""
    left, right = (re.findall("[0-9]{1,9}", side) for side in text.partition("=")[::2])
    if not left or len(right) != 1:
        raise TaskError(f"{text!r} is no problem: give the numbers and the target, such as 3 8 5 = 16.")
    return {"nums": [int(n) for n in left], "target": int(right[0])}


def _generated(split, o):
    counts = re.fullmatch(r"([1-6])(?:-([1-6]))?", o["numbers"])
    if not counts or not (least := int(counts[1])) <= (most := int(counts[2] or counts[1])):
        raise TaskError(f"Task option numbers={o['numbers']!r}: expected 3, 4 or 3-4 (from 1 to 6 numbers).")
    low, high, bounds = o["low"], o["high"], (o["target_low"], o["target_high"])
    wanted = f"low={low} high={high} target_low={bounds[0]} target_high={bounds[1]}"
    if not 1 <= low <= high or not 0 <= bounds[0] <= bounds[1]:
        raise TaskError(f"Countdown needs 1 <= low <= high and 0 <= target_low <= target_high, not {wanted}.")
    nothing = TaskError(f"Found no {split} problem of {o['numbers']} numbers with {wanted}: widen a range.")

    def draw(rng):
        """(nums, target) of the split; the target is uniform over the distinct ones in reach."""
        for _ in range(MAX_DRAWS):
            nums = [rng.randint(low, high) for _ in range(rng.randint(least, most))]
            targets = _targets(tuple(sorted(nums)), *bounds)
            if targets and is_test(nums, target := rng.choice(targets)) == (split == "test"):
                return nums, target
        raise nothing

    if split == "train":
        draw(random.Random(0))  # ranges that hold no problem are an error now, not at the first step
        rng = random.Random(f"countdown train {o['seed']}")
        return (draw(rng) for _ in count())

    rng, size, sizes = random.Random("countdown test"), o["limit"] or TEST_SIZE, range(least, most + 1)
    found = {}  # (sorted nums, target) -> (nums, target)
    if sum(comb(high - low + n, n) for n in sizes) > ENUMERABLE:
        for nums, target in (draw(rng) for _ in range(20 * size)):
            found.setdefault((*sorted(nums), target), (nums, target))
            if len(found) == size:
                break
        return iter(found.values())
    pools = (nums for n in sizes for nums in combinations_with_replacement(range(low, high + 1), n))
    held = [(nums, target) for nums in pools for target in _targets(nums, *bounds) if is_test(nums, target)]
    if not held:
        raise nothing
    return ((rng.sample(nums, len(nums)), target) for nums, target in rng.sample(held, min(size, len(held))))


def _problem(row):
    nums, target = row["nums"], row["target"]
    if not isinstance(nums, list) or not nums or {type(n) for n in (*nums, target)} != {int}:
        raise BadRow("is no problem: expected nums to be a list of integers and target an integer")
    return nums, target


def _from_rows(split, data, everything, seed):
    rows = read_rows(data, ("nums", "target"), convert=_problem)
    if everything and split == "test":
        return iter(rows)
    held = TEST_ROWS if len(rows) >= TRAIN_ROWS + TEST_ROWS else max(1, min(TEST_ROWS, len(rows) // 10))
    cut = min(TRAIN_ROWS, len(rows) - held)
    test = rows[cut : cut + held]
    if split == "test":
        return iter(test)
    seen = {(*sorted(nums), target) for nums, target in test}
    train = [(nums, target) for nums, target in rows[:cut] if (*sorted(nums), target) not in seen]
    if not train:
        raise TaskError(
            f"{data!r} has too few rows: none is left for training beside the {held} of the test split."
        )
    epochs = (random.Random(f"countdown epoch {seed} {epoch}").sample(train, len(train)) for epoch in count())
    return (problem for epoch in epochs for problem in epoch)


def is_test(nums, target):
    """Whether a generated problem belongs to the test split: in whatever order its numbers stand."""
    return held_out("countdown", sorted(nums), target)


def _steps(a, b):
    """The (operator, larger, smaller, value) that combine two non-negative integers into a third."""
    a, b = max(a, b), min(a, b)
    yield from (("+", a, b, a + b), ("-", a, b, a - b), ("*", a, b, a * b))
    if b and a % b == 0:
        yield "/", a, b, a // b


@lru_cache(maxsize=1 << 14)
def reachable(nums, most):
    """Frozenset of the values that all of `nums` (a sorted tuple) make in steps of integers in 0..most."""
    if len(nums) == 1:
        return frozenset(nums)
    found = set()
    for i, j in combinations(range(len(nums)), 2):
        rest = nums[:i] + nums[i + 1 : j] + nums[j + 1 :]
        for value in {step[3] for step in _steps(nums[i], nums[j])}:
            if value <= most:
                found |= reachable(tuple(sorted((*rest, value))), most)
    return frozenset(found)


@lru_cache(maxsize=1 << 14)
def _targets(nums, low, high):
    return tuple(sorted(v for v in reachable(nums, max(high, MAX_INTERMEDIATE)) if low <= v <= high))


def solutions(nums, target):
    """Distinct expressions, without spaces, that reach the target in steps of non-negative integers."""
    rank = dict(zip("+-*/", (1, 1, 2, 2))) | {"": 3}  # by an expression's outermost operator; "" is a number

    def search(pool):  # of (value, expression, outermost operator)
        if len(pool) == 1:
            if pool[0][0] == target:
                yield pool[0][1]
            return
        for i, j in combinations(range(len(pool)), 2):
            rest = pool[:i] + pool[i + 1 : j] + pool[j + 1 :]
            left, right = sorted((pool[i], pool[j]), key=lambda term: term[0], reverse=True)
            for op, _, _, value in _steps(left[0], right[0]):
                lhs = left[1] if rank[left[2]] >= rank[op] else f"({left[1]})"
                tight = rank[right[2]] > rank[op] or right[2] == op in "+*"
                rhs = right[1] if tight else f"({right[1]})"
                yield from search((*rest, (value, f"{lhs}{op}{rhs}", op)))

    found = set()
    for expression in search(tuple((n, str(n), "") for n in nums)):
        if expression not in found:
            found.add(expression)
            yield expression


def solve(nums, target):
    """One gold expression, None where integers do not reach the target."""
    return next(solutions(nums, target), None)


# ---------------------------------------------------------------- the verifier


def reward(completion, example):
    """{"reward", "correct", "answered", "answer", what `behaviours` finds} of any text, without an exception.

    "answer" is for a majority vote: 8*(5-3) and (5-3)*8 are the same answer, = 16.
    As in TinyZero, whatever stands between the answer tags earns the middle reward, be it an equation or not.
    """
    completion = completion if isinstance(completion, str) else ""
    right, wrong, none = REWARDS[example.get("reward", OPTIONS["reward"])]
    answer, nums, target = extract_answer(completion), example["nums"], example["target"]
    correct = answer is not None and verify(answer, nums, target)
    found = evaluate(answer.translate(TYPOGRAPHIC)) if answer and len(answer) <= MAX_LENGTH else None
    same = correct or found and sorted(found[1]) == sorted(nums)
    return {
        "reward": right if correct else none if answer is None else wrong,
        "correct": correct,
        "answered": float(answer is not None),
        "answer": f"= {target if correct else found[0]}" if same else answer,
        **behaviours(completion, example),
    }


def gold(example):
    """An answer that is right, None where integers do not reach the target."""
    return solve(example["nums"], example["target"])


def state(answer, example):
    """A completion that states this answer."""
    return f"<answer>{answer}</answer>"


def verify(answer, nums, target):
    """Whether `answer` makes the target from exactly these numbers. A trailing `= target` is allowed."""
    expression, *stated = answer[: MAX_LENGTH + 1].translate(TYPOGRAPHIC).split("=")
    if len(answer) > MAX_LENGTH or stated and [text.strip() for text in stated] != [str(target)]:
        return False
    value, numbers, _ = evaluate(expression) or (None, (), ())
    return value == target and sorted(numbers) == sorted(nums)
