"""Multiplication: the verifier against good and hostile answers, problems and split, decomposition."""

import json
import random
import re
from itertools import islice, product
from pathlib import Path

import pytest
from timing import fastest

from commands.tasks import completion_of
from minibase import make as minibase
from tasks import TaskError, multiplication, render

FIXTURES = Path(__file__).parent / "fixtures"
CASES = json.loads((FIXTURES / "multiplication_answers.json").read_text(encoding="utf-8"))
LABELS = json.loads((FIXTURES / "multiplication_behaviours.json").read_text(encoding="utf-8"))
KEYS = {
    "answer", "reward", "correct", "answered", "decomposes", "decomposes_fully", "steps",
    "arithmetic_accuracy", "partials_add_up",
}  # fmt: skip


def score(completion, a=23, b=47, **style):
    return multiplication.reward(completion, {"a": a, "b": b, **style})


# ---------------------------------------------------------------- the verifier


@pytest.mark.parametrize("case", CASES, ids=[case["why"] for case in CASES])
def test_every_answer_of_the_fixture(case):
    completion = completion_of(case)
    result = multiplication.reward(completion, case)
    assert (result["correct"], result["answered"]) == (case["correct"], case["answered"])
    assert result["reward"] == (1.0 if case["correct"] else 0.1 if case["answered"] else 0.0)


@pytest.mark.timing
def test_verdicts_are_fast():
    for case in CASES:
        completion = completion_of(case)
        _, seconds = fastest(lambda text=completion, c=case: multiplication.reward(text, c))
        assert seconds < 0.005, case["why"]


def test_the_exam_is_large():
    countdown = json.loads((FIXTURES / "countdown_answers.json").read_text(encoding="utf-8"))
    assert len(CASES) >= 75 and len(CASES) + len(countdown) >= 150
    assert sum(case["correct"] for case in CASES) >= 50 and len({case["why"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "name, rewards", [("tinyzero", (1, 0.1, 0)), ("simplerl", (1, -0.5, -1)), ("binary", (1, 0, 0))]
)
def test_reward_numbers(name, rewards):
    texts = ("<answer>1,081</answer>", "<answer>1082</answer>", "I cannot.")
    assert tuple(score(text, reward=name)["reward"] for text in texts) == rewards


def test_no_text_raises():
    for thing in (None, 3, b"<answer>1081</answer>", ["x"], {}):
        assert not score(thing)["correct"]
    rng = random.Random(0)
    alphabets = (
        "0123456789+-*/()= ,.\n",
        "0123456789+-*/()=.,×÷−·x$\\{}`<>/think answer is times",
        "".join(map(chr, range(0x20, 0x250))) + "\0\u200b\u202f\ud800٣３²½",
    )
    tags = ["<think>", "</think>", "<answer>", "</answer>", "23*40=920", "=1,081", "\\times", "\\boxed{1081}"]
    for _ in range(3000):
        letters = rng.choice(alphabets)
        parts = ["".join(rng.choices(letters, k=rng.randrange(12))) for _ in range(8)]
        text = "".join(part + rng.choice(tags) * rng.randrange(2) for part in parts)
        result = score(text, wording=rng.choice(("short", "plain")))
        multiplication.stated(text)
        assert set(result) <= KEYS
        assert all(isinstance(value, (bool, int, float)) for key, value in result.items() if key != "answer")


def test_only_the_product_is_ever_stated():
    """Of every number in many notations, the one that is right is rewarded and no other."""
    rng = random.Random(1)
    notations = ("{n}", "{n:,}", "= {n}", "{n}.0", "{a}*{b} = {n}", "**{n:,}**", r"$\boxed{{{n}}}$", "{n}.")
    for _ in range(500):
        a, b = rng.randint(2, 999), rng.randint(2, 999)
        wrong = a * b + rng.choice((-1, 1)) * rng.choice((1, 10, 100, 9 * a * b))
        notation = rng.choice(notations)
        for n in (a * b, wrong):
            text = notation.format(a=a, b=b, n=n)
            assert score(f"<answer>{text}</answer>", a, b)["correct"] == (n == a * b), text


def test_a_truncated_gold_is_no_gold():
    gold = "<think>23*40=920\n23*7=161\n920+161=1081</think>\n<answer>1081</answer>"
    assert score(gold)["correct"]
    assert not any(score(gold[:end])["correct"] for end in range(len(gold)))


def test_equivalent_answers_vote_together():
    texts = ("1081", "1,081", "23*47 = 1081.0", "The answer is **1081**.")
    assert {score(f"<answer>{text}</answer>")["answer"] for text in texts} == {"1081"}
    assert score("<answer>23*47</answer>")["answer"] == "23*47" and score("no")["answer"] is None


# ---------------------------------------------------------------- problems


def first(n, split="train", **options):
    return [(e["a"], e["b"]) for e in islice(multiplication.examples(split, **options), n)]


@pytest.mark.parametrize(
    "options, smallest, largest",
    [
        ({}, (10, 10), (99, 99)),
        ({"digits": "3x2"}, (100, 10), (999, 99)),
        ({"digits": "1-3x2-4"}, (2, 10), (999, 9999)),
        ({"digits": "6x6"}, (10**5, 10**5), (10**6 - 1, 10**6 - 1)),
        ({"low": "5", "high": 60}, (5, 5), (60, 60)),
        ({"low": 2, "high": 12, "held": "24"}, (2, 2), (12, 12)),
    ],
)
def test_problems(options, smallest, largest):
    train, test = first(2000, **options), first(2000, "test", **options)
    assert train == first(2000, **options) and test == first(2000, "test", **options)
    assert first(50, seed=1, **options) != train[:50] and first(2000, "test", seed=1, **options) == test
    assert len(set(test)) == len(test) and first(7, limit=5, **options) == train[:5]
    assert len(first(99, "test", limit=9, **options)) == 9
    for factors in (train, test):
        for numbers, low, high in zip(zip(*factors), smallest, largest):
            assert low <= min(numbers) and max(numbers) <= high
    assert not {tuple(sorted(pair)) for pair in train} & {tuple(sorted(pair)) for pair in test}


def test_digits_are_drawn_evenly():
    lengths = [len(str(a)) for a, _ in first(3000, digits="1-3x2")]
    assert all(lengths.count(n) == pytest.approx(1000, abs=100) for n in (1, 2, 3))


def test_the_tables_hold_out_24_pairs_in_both_orders():
    options = {"low": 2, "high": 12, "held": 24}
    test = first(200, "test", **options)
    assert len({tuple(sorted(pair)) for pair in test}) == 24 and {(b, a) for a, b in test} == set(test)
    assert set(first(5000, **options)) == set(product(range(2, 13), repeat=2)) - set(test)


def test_what_the_miniature_base_was_kept_from():
    """The test split is exactly the base's held-out pairs, and the prompt is the one that it has read."""
    held = [pair for pair in product(range(10, 100), repeat=2) if multiplication.is_test(*pair)]
    assert sorted(first(2000, "test")) == held and len(held) == 635
    assert held[:6] == [(11, 29), (11, 36), (11, 52), (11, 53), (11, 56), (11, 74)]
    seen = 0
    for prompt, completion in islice(minibase.documents(minibase.Corpus(), seed=5), 3000):
        if prompt.startswith("What is"):
            a, b = map(int, re.findall(r"\d+", prompt))
            example = {"a": a, "b": b, "wording": "short"}
            assert prompt == render("none", multiplication.question(example))
            assert not multiplication.is_test(a, b)
            result = multiplication.reward(completion, example)
            decomposed = "+" in completion
            assert result["answered"] and result["decomposes"] == decomposed
            assert result["correct"] or not result["decomposes_fully"]
            assert result["decomposes_fully"] or completion.count("=") <= 3
            if decomposed:
                assert result["partials_add_up"] == 1
                assert result["arithmetic_accuracy"] == 1 or not result["decomposes_fully"]
            seen += 1
    assert seen > 1000


def test_wordings():
    def question(wording):
        return multiplication.question({"a": 23, "b": 47, "wording": wording})

    assert question("short") == "What is 23*47?" and question("plain") == "What is 23 * 47?"
    assert question("tinyzero") == (
        "What is 23 * 47? Show your work in <think> </think> tags. And return the final answer in <answer> "
        "</answer> tags, for example <answer> 42 </answer>."
    )
    (generated,) = islice(multiplication.examples("train", wording="short", reward="simplerl"), 1)
    assert (generated["wording"], generated["reward"]) == ("short", "simplerl")


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"digit": "3x2"}, "Unknown task option 'digit'. Did you mean 'digits'"),
        ({"digits": "3"}, "digits='3': expected 2x2, 3x2 or 1-3x2"),
        ({"digits": "3-2x2"}, "digits='3-2x2'"),
        ({"digits": "7x7"}, "1 to 6 digits"),
        ({"low": 2}, "needs 1 <= low <= high, not low=2 high=0"),
        ({"high": 12}, "not low=0 high=12"),
        ({"low": 2, "high": 12, "digits": "2x2"}, "exclude each other"),
        ({"low": 2, "high": 12, "held": 66}, "held=66: expected 1 to 65 pairs"),
        ({"digits": "3x3", "held": 24}, "held=24 .* at most 20000 problems"),
        ({"held": -1}, "held=-1"),
        ({"split": "test", "low": 20, "high": 20}, "Found no test problem"),
    ],
)
def test_options_that_cannot_be_used_say_why_at_once(options, expected):
    options = dict(options)
    with pytest.raises(TaskError, match=expected):
        multiplication.examples(options.pop("split", "train"), **options)


# ---------------------------------------------------------------- decomposition


def test_agreement_with_hand_labels():
    """kind, steps, right steps and whether the partial products add up: each right in 95 % of the responses.

    What is not read is labelled as it is, too: columns, arrows, numbers in words.
    """
    wrong = {"kind": [], "steps": [], "right": [], "adds_up": []}
    for label in LABELS:
        result = score(label["text"], label["a"], label["b"])
        kind = ("at once", "once", "fully")[int(result["decomposes"] + result["decomposes_fully"])]
        right = round(result.get("arithmetic_accuracy", 0) * result["steps"])
        found = {"kind": kind, "steps": result["steps"], "right": right}
        for key, value in (found | {"adds_up": result.get("partials_add_up")}).items():
            if value != label[key]:
                wrong[key].append(label["why"])
    assert len(LABELS) >= 60 and len({label["why"] for label in LABELS}) == len(LABELS)
    assert max(map(len, wrong.values())) <= 0.05 * len(LABELS), wrong


def test_behaviours_of_one_response():
    thought = "<think>23*40=20*40+3*40=800+120=910\n23*7=161\n910+161=1071</think>\n"
    assert score(thought + "<answer>1071</answer>", reward="binary") == {
        "reward": 0.0, "correct": False, "answered": 1.0, "answer": "1071", "decomposes": 1.0,
        "decomposes_fully": 0.0, "steps": 5, "arithmetic_accuracy": 0.8, "partials_add_up": 1.0,
    }  # fmt: skip
    # No product is stated.
    assert "partials_add_up" not in score(thought)


@pytest.mark.timing
def test_rewards_are_fast_where_much_is_to_be_read():
    tables = "".join(f"{i}*{j}={i * j}, " for i in range(2, 14) for j in range(40, 52)) * 40
    sums = "(1+2+3+4+5+6)*(1+2+3+4+5+6)=(2+3+4+5+6+7)*(2+3+4+5+6+7)\n" * 300
    terms = ("+".join(f"{i}*{j}" for i in (20, 21, 22) for j in range(40, 48)) + "=1081\n") * 100
    prose = "We see 23 × 40 = 920 and then 23 times 7 is 161, and we add them to get 1,081. " * 300
    for text in (tables, sums, terms, prose):
        assert fastest(lambda text=text: score(text, wording="plain"))[1] < 0.005
