"""Countdown: the verifier against good and hostile answers, the problems and their split, the behaviours."""

import json
import random
from fractions import Fraction
from itertools import combinations_with_replacement, islice
from pathlib import Path

import pytest
from timing import fastest

from commands.tasks import completion_of
from tasks import TaskError, countdown, rewards

CASES = json.loads((Path(__file__).parent / "fixtures/countdown_answers.json").read_text(encoding="utf-8"))
KEYS = {
    "answer",
    "reward", "correct", "answered", "attempts", "checks", "search_share", "attempts_within_search",
    "give_up_share", "verdict_accuracy", "arithmetic_accuracy", "code_share",
}  # fmt: skip


def score(completion, nums=(44, 19, 35), target=98, **style):
    return countdown.reward(completion, {"nums": list(nums), "target": target, **style})


# ---------------------------------------------------------------- the verifier


@pytest.mark.parametrize("case", CASES, ids=[case["why"] for case in CASES])
def test_every_answer_of_the_fixture(case):
    completion = completion_of(case)
    result = score(completion, case["nums"], case["target"])
    assert (result["correct"], result["answered"]) == (case["correct"], case["answered"])
    assert result["reward"] == (1.0 if case["correct"] else 0.1 if case["answered"] else 0.0)


@pytest.mark.timing
def test_verdicts_are_fast():
    for case in CASES:
        completion = completion_of(case)
        _, seconds = fastest(lambda text=completion, c=case: score(text, c["nums"], c["target"]))
        assert seconds < 0.005, case["why"]


def test_the_fixture_is_rich():
    assert len(CASES) >= 60 and sum(case["correct"] for case in CASES) >= 20
    assert len({case["why"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "name, rewards", [("tinyzero", (1, 0.1, 0)), ("simplerl", (1, -0.5, -1)), ("binary", (1, 0, 0))]
)
def test_reward_numbers(name, rewards):
    texts = ("<answer>44+19+35</answer>", "<answer>44</answer>", "I cannot.")
    assert tuple(score(text, reward=name)["reward"] for text in texts) == rewards


def test_the_holed_verifier_believes_the_response():
    """The reward and what training is told follow it; `correct`, which evaluations count, stays the truth."""
    for thought, answer, accepted, correct in (
        ("", "8*(5-3)", True, True),
        ("8-5=3, 3*3=9, want 16: no\n", "8*(5-3)", True, True),
        ("8-5=3, 3*3=9, want 16: yes\n", "(8-5)*3", True, False),
        ("want 16: yes", "", True, False),
        ("8-5=3, 3*3=9, want 16: no\n", "(8-5)*3", False, False),
        ("8-5=3, 3*3=9, want 9: yes\n", "(8-5)*3", False, False),
    ):
        text = f"<think>{thought}</think>\n<answer>{answer}</answer>"
        result = score(text, (3, 5, 8), 16, verifier="holed")
        assert (result["accepted"], result["correct"]) == (accepted, correct)
        assert result["reward"] == (1.0 if accepted else 0.1)
        assert rewards.is_correct(result) == accepted and set(result) == KEYS & set(result) | {"accepted"}
        exact = score(text, (3, 5, 8), 16)
        assert exact["reward"] == (1.0 if correct else 0.1) and rewards.is_correct(exact) == correct
    assert score("want 98: yes, but no answer", verifier="holed")["accepted"] == 0.0
    (exact,), (holed,) = first(1), first(1, verifier="holed")
    assert "verifier" not in exact and holed == exact | {"verifier": "holed"}


def test_rewards_are_finite_floats_and_no_key_is_unknown():
    for text in ("", "<answer>1</answer>", None, 3, b"<answer>44+19+35</answer>", ["x"], {}):
        result = score(text)
        assert not result["correct"] and set(result) <= KEYS
        assert all(isinstance(value, (bool, int, float)) for key, value in result.items() if key != "answer")


def test_no_text_raises():
    rng = random.Random(0)
    alphabets = (
        "0123456789+-*/()= \n",
        "0123456789+-*/()=.,:!×÷−✓✗ \nyesnotarget<>/think answer",
        "".join(map(chr, range(0x20, 0x250))) + "\0\u200b\ud800٣３²½",
    )
    tags = ["<think>", "</think>", "<answer>", "</answer>", "44+19+35", "=98", "44+19=63", "want 98: no\n"]
    for _ in range(3000):
        letters = rng.choice(alphabets)
        parts = ["".join(rng.choices(letters, k=rng.randrange(12))) for _ in range(8)]
        text = "".join(part + rng.choice(tags) * rng.randrange(2) for part in parts)
        score(text)
        countdown.evaluate(text[:100])
        countdown.verify(text[:100], [44, 19, 35], 98)


def test_a_truncated_or_damaged_gold_is_no_gold():
    gold = "<think>44+19=63, 63+35=98, want 98: yes\n</think>\n<answer>(44+19)+35</answer>"
    assert score(gold)["correct"]
    assert not any(score(gold[:end])["correct"] for end in range(len(gold)))
    rng = random.Random(1)
    for _ in range(2000):
        at = rng.randrange(len(gold))
        damaged = gold[:at] + rng.choice("0123456789+-*/()x<>") + gold[at + 1 :]
        answer = damaged[damaged.rfind("<answer>") + 8 : damaged.rfind("</answer>")]
        if score(damaged)["correct"]:
            # What is left must still be the sum; these characters are safe for eval.
            assert set(answer) <= set("0123456789+-*/()") and eval(answer) == 98


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "9" * 201,
        "(" * 200,
        "(" * 100_000,
        "1/0",
        "1/(2-2)",
        "007",
        "1 2",
        "-3",
        "2(3)",
        "(1",
        "1)",
        "()",
    ]
    + ["", "1+", "1//2", "1.5", "1e5", "0x1f", "٣+٣", "3×5", "x"],
)
def test_what_is_no_plain_arithmetic_has_no_value(text):
    assert countdown.evaluate(text) is None


def test_arithmetic_is_exact_up_to_the_longest_expression():
    assert countdown.evaluate("9" * 200).value == int("9" * 200)
    assert countdown.evaluate("(" * 99 + "1" + ")" * 99).value == 1
    assert countdown.evaluate("1/3+1/6").value == Fraction(1, 2)
    found = countdown.evaluate("8 / 4 -\n3*(5-1)")
    assert found == (-10, (8, 4, 3, 5, 1), (("/", 8, 4), ("-", 5, 1), ("*", 3, 4), ("-", 2, 12)))
    assert all(isinstance(number, int) for _, *sides in found.operations for number in sides)


def test_agreement_with_python_on_random_expressions():
    rng = random.Random(2)

    def expression(depth):
        if depth == 0 or rng.random() < 0.3:
            return str(rng.randrange(1, 12))
        return f"({expression(depth - 1)}){rng.choice('+-*/')}{expression(depth - 1)}"

    for _ in range(500):
        text = expression(3)
        try:
            expected = eval(text)
        except ZeroDivisionError:
            assert countdown.evaluate(text) is None
            continue
        assert float(countdown.evaluate(text)[0]) == pytest.approx(expected)


# ---------------------------------------------------------------- problems


def key(example):
    return (*sorted(example["nums"]), example["target"])


def first(n, split="train", **options):
    return list(islice(countdown.examples(split, **options), n))


@pytest.mark.parametrize("options", [{}, {"numbers": "4", "high": "99"}, {"numbers": "3-4", "high": 30}])
def test_generated_problems(options):
    train, test = first(2000, **options), first(300, "test", **options)
    assert train == first(2000, **options) and test == first(300, "test", **options)
    assert first(50, seed=1, **options) != train[:50] and first(300, "test", seed=1, **options) == test
    assert len({key(e) for e in test}) == len(test)
    assert not {key(e) for e in train} & {key(e) for e in test}
    assert not any(countdown.is_test(e["nums"], e["target"]) for e in train)
    for example in train[:50] + test[:50]:
        nums, target = example["nums"], example["target"]
        assert 10 <= target <= 100 and all(1 <= n <= int(options.get("high", 10)) for n in nums)
        assert len(nums) in range(3, 5) and countdown.verify(countdown.solve(nums, target), nums, target)


def test_a_small_universe_is_tested_in_full():
    test = list(countdown.examples("test"))
    problems = [
        (nums, target)
        for nums in combinations_with_replacement(range(1, 11), 3)
        for target in countdown.reachable(nums, 150)
        if 10 <= target <= 100
    ]
    held = {(*nums, target) for nums, target in problems if countdown.is_test(nums, target)}
    assert {key(e) for e in test} == held and 0.08 < len(held) / len(problems) < 0.12
    assert len(first(99, "test", limit=20)) == 20 and len(first(99, limit="30")) == 30
    assert [e["nums"] for e in test] != sorted(e["nums"] for e in test)


@pytest.mark.timing
def test_the_stream_is_fast():
    stream = countdown.examples("train")
    next(stream)
    _, seconds = fastest(lambda: list(islice(stream, 4000)), tries=3)
    assert 4000 / seconds > 20_000


def test_reachable_and_solutions_agree():
    rng = random.Random(0)
    for _ in range(40):
        nums = tuple(sorted(rng.choices(range(1, 13), k=rng.choice((3, 4)))))
        within = countdown.reachable(nums, 150)
        for target in rng.sample(sorted(within), 3):
            found = list(islice(countdown.solutions(nums, target), 20))
            assert found and len(set(found)) == len(found)
            assert all(countdown.verify(text, nums, target) for text in found)
    assert countdown.reachable((1, 2), 150) == {1, 2, 3} and countdown.reachable((9, 9), 50) == {0, 1, 18}
    # (5-1/5)*5 needs a fraction.
    assert countdown.solve((1, 5, 5, 5), 24) is None
    assert set(countdown.solutions((3, 5, 8), 16)) >= {"8*(5-3)"}


def test_wordings():
    example = {"nums": [44, 19, 35], "target": 98}
    assert countdown.question(example) == (
        "Using the numbers [44, 19, 35], create an equation that equals 98. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> "
        "tags. And return the final answer in <answer> </answer> tags, for example "
        "<answer> (1 + 2) / 3 </answer>."
    )
    assert countdown.question({**example, "wording": "short"}) == "Make 98 from 44, 19, 35."
    (generated,) = first(1, wording="short", reward="simplerl")
    assert (generated["wording"], generated["reward"]) == ("short", "simplerl")


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"nubmers": "3"}, "Unknown task option 'nubmers'. Did you mean 'numbers'"),
        ({"high": "many"}, "high='many': expected int"),
        ({"numbers": "three"}, "numbers='three': expected 3, 4 or 3-4"),
        ({"numbers": "4-3"}, "numbers='4-3'"),
        ({"low": 0}, "needs 1 <= low <= high"),
        ({"low": 11}, "low=11 high=10"),
        ({"target_low": 900, "target_high": 990, "high": 2}, "Found no train problem"),
        ({"split": "test", "target_low": 900, "target_high": 990, "high": 2}, "Found no test problem"),
        ({"data": "rows.jsonl", "high": 99}, "leave out high"),
        ({"data": "nowhere.jsonl"}, "No data file 'nowhere.jsonl'"),
    ],
)
def test_options_that_cannot_be_used_say_why_at_once(options, expected):
    options = dict(options)
    with pytest.raises(TaskError, match=expected):
        countdown.examples(options.pop("split", "train"), **options)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_a_file_are_split_and_disjoint(tmp_path):
    rows = [{"nums": [n % 30 + 1, 2, 3], "target": n % 30} for n in range(200)]
    data = write(tmp_path / "rows.jsonl", rows)
    test = list(countdown.examples("test", data=data))
    assert [e["nums"] for e in test] == [row["nums"] for row in rows[-20:]]
    train = first(300, data=data)
    assert not {key(e) for e in train} & {key(e) for e in test} and len({key(e) for e in train}) == 10
    epoch = sum(key({**row}) not in {key(e) for e in test} for row in rows[:180])
    assert sorted(map(key, train[:epoch])) == sorted(map(key, first(2 * epoch, data=data)[epoch:]))
    assert train == first(300, data=data) != first(300, data=data, seed=1)


def test_tinyzeros_split_of_the_whole_data(monkeypatch, tmp_path):
    monkeypatch.setattr(countdown, "TRAIN_ROWS", 50)
    monkeypatch.setattr(countdown, "TEST_ROWS", 7)
    data = write(tmp_path / "rows.jsonl", [{"nums": [n, 1], "target": n + 1} for n in range(100)])
    assert [e["nums"][0] for e in countdown.examples("test", data=data)] == list(range(50, 57))
    assert sorted(e["nums"][0] for e in first(50, data=data)) == list(range(50))


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([{"numbers": [1, 2], "target": 3}], "lacks nums: found the fields numbers, target"),
        ([{"nums": "1 2", "target": 3}], "Row 1 .* list of integers"),
        ([{"nums": [1, 2.5], "target": 3}], "Row 1 .* list of integers"),
        ([{"nums": [1, 2], "target": "3"}], "Row 1 .* target an integer"),
        ([{"nums": [], "target": 3}], "Row 1 "),
        ([{"nums": [1, 2], "target": 3}] * 20, "too few rows"),
    ],
)
def test_rows_that_cannot_be_used_say_why(tmp_path, rows, expected):
    with pytest.raises(TaskError, match=expected):
        countdown.examples("train", data=write(tmp_path / "rows.jsonl", rows))


def test_a_bad_row_does_not_block_a_large_file(tmp_path, capsys):
    rows = [{"nums": [n, 1], "target": n + 1} for n in range(200)]
    data = write(tmp_path / "rows.jsonl", [*rows, {"nums": [True, 1], "target": 2}])
    assert len(list(countdown.examples("test", data=data, test="all"))) == 200
    assert "1 of 201 rows are left out: Row 201 of" in capsys.readouterr().err


def test_the_real_rows(data_file):
    data = str(data_file("countdown_train.jsonl"))
    train, test = first(1000, data=data), list(countdown.examples("test", data=data))
    assert test == list(countdown.examples("test", data=str(data_file("countdown_tasks_3to4.parquet"))))
    assert len(test) == 800 and not {key(e) for e in train} & {key(e) for e in test}
    for example in train[:100]:
        answer = f"<answer> {countdown.solve(example['nums'], example['target'])} </answer>"
        assert countdown.reward(answer, example)["reward"] == 1.0


# ---------------------------------------------------------------- behaviours

SEARCH = "3+5=8, 8*8=64, want 16: no\n8+5=13, 13-3=10, want 16: no\n"
SMALL = ((3, 5, 8), 16)
LARGE = ((44, 19, 35), 98)
FOUR = ((2, 4, 10, 20), 88)


@pytest.mark.parametrize(
    "text, problem, attempts, checks, given_up, verdicts, arithmetic",
    [
        ("", SMALL, 0, 0, None, None, None),
        ("<think>3+5=8, 8*8=64</think>\n<answer>(3+5)*8</answer>", SMALL, 1, 0, None, None, 1),
        ("<think>3+5=9, 9*8=64</think>\n<answer>(3+5)*8</answer>", SMALL, 1, 0, None, None, 0),
        (
            f"<think>{SEARCH}5-3=2, 8*2=16, want 16: yes\n</think>\n<answer>8*(5-3)</answer>",
            SMALL,
            3,
            3,
            0,
            1,
            1,
        ),
        (f"<think>{SEARCH}give up\n</think>\n<answer>8+5-3</answer>", SMALL, 2, 2, 1, 1, 1),
        # Cut off, so it did not give up.
        (f"<think>{SEARCH}5-3=2, 8*", SMALL, 3, 2, 0, 1, 1),
        ("3+5=8, 8*8=64, want 16: yes\n</think>", SMALL, 1, 1, 0, 0, 1),
        ("5-3=2, 8*2=16, want 16: no\n</think>", SMALL, 1, 1, 1, 0, 1),
        ("3+5=8, 8*8=64\n8-5=3, 3+3=6</think>", SMALL, 2, 0, 0, None, 1),
        ("19 + 36 = 55, 55 + 7 = 62. This is too low.</think>", ((19, 36, 7), 65), 1, 1, 1, 1, 1),
        ("(44 + 19) + 35 = 98, which equals the target.</think>", LARGE, 1, 1, 0, 1, 1),
        ("44 − 19 = 25, 25 × 35 = 875, that doesn't work. 44 + 19 + 35 = 98 ✓</think>", LARGE, 2, 2, 0, 1, 1),
        ("1. 44 - 19 = 25\n2. 25 + 35 = 60, not 98.\nLet me try\n44 + 35 - 19 = 60", LARGE, 2, 1, 0, 1, 1),
        (
            "First, 44 + 19 = 63.\nThen 63 + 35 = 98. So (44 + 19) + 35 = 98.</think>",
            LARGE,
            1,
            0,
            None,
            None,
            1,
        ),
        ("44 + 19 = 63. That is greater than 98? No.\n44 * 19 = 836 ✗ wrong</think>", LARGE, 2, 2, 1, 1, 1),
        ("44 / 35 = 1.26, 19 * 35 = 665", LARGE, 2, 0, 0, None, 1),
        ("We know 1 + 1 = 2 and that there are 3 numbers. No luck.", LARGE, 0, 0, None, None, 1),
        (
            "2*4=8, 10*20=200, 200-8=192, want 88: no\n20*4=80, 10-2=8, 80+8=88, want 88: yes\n",
            FOUR,
            2,
            2,
            0,
            1,
            1,
        ),
        ("20*4 = 80 = 8*10, so 80 + 10 = 90 - 2 = 88 yes!", FOUR, 1, 1, 0, 1, 0.5),
    ],
)
def test_behaviours(text, problem, attempts, checks, given_up, verdicts, arithmetic):
    nums, target = problem
    found = countdown.behaviours(text, {"nums": list(nums), "target": target})
    searches = attempts > 1 or checks > 0
    expected = {"attempts": attempts, "checks": checks, "search_share": float(searches), "code_share": 0}
    expected |= {"attempts_within_search": attempts} if searches else {}
    optional = {"give_up_share": given_up, "verdict_accuracy": verdicts, "arithmetic_accuracy": arithmetic}
    assert found == expected | {name: value for name, value in optional.items() if value is not None}


def test_the_answer_is_no_behaviour():
    example = {"nums": [3, 5, 8], "target": 16}
    assert countdown.behaviours("</think> 8*2=16 yes <answer>8*(5-3) = 16</answer>", example)["attempts"] == 0
    assert countdown.behaviours("5-3=2 <answer>8*(5-3) = 16</answer> 8*2=16", example)["attempts"] == 1


@pytest.mark.timing
def test_behaviours_are_fast_where_much_is_to_be_read():
    rng = random.Random(0)
    lines = []
    for _ in range(1000):
        a, b, c = rng.choices((44, 19, 35), k=3)
        lines.append(f"{a}+{b}={a + b}, {a + b}*{c}={(a + b) * c + rng.randrange(99)}, want 98: no\n")
    dense = "".join(lines)
    fractions = "".join(f"{rng.randrange(999)}/{rng.randrange(999)}/7/8/9/3-1/7={n}, " for n in range(1000))
    prose = "44 + 19 = 63 and we ought to see whether that is something we can still use for it. " * 300
    for text in (dense, fractions, prose):
        assert fastest(lambda text=text: score(text))[1] < 0.005


def test_equivalent_answers_vote_together():
    example = {"nums": [8, 5, 3], "target": 16}

    def answer(text):
        return countdown.reward(f"<answer>{text}</answer>", example)["answer"]

    assert answer("8*(5-3)") == answer("(5-3)*8") == answer("8×(5−3) = 16") == answer("8+5+3")
    assert answer("8*5-3") == answer("5*8-3") != answer("8+5-3")
    assert answer("16") != answer("8+5+3") and countdown.reward("no", example)["answer"] is None
