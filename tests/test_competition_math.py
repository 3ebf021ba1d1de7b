"""Competition mathematics: the exam of answer pairs, hostile answers, data sets."""

import json
import math
import random
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from commands.tasks import FIXTURES, completion_of, main
from runtime.metrics import majority
from tasks import TaskError, competition_math, read_jsonl, render

CASES = json.loads((FIXTURES / "competition_math_answers.json").read_text(encoding="utf-8"))
PAIRS = json.loads((FIXTURES / "competition_math_pairs.json").read_text(encoding="utf-8"))


def score(answer, gold="42", **style):
    return competition_math.reward(f"\\boxed{{{answer}}}", {"answer": gold, **style})


# ---------------------------------------------------------------- the verifier


@pytest.mark.verifier
@pytest.mark.parametrize("pair", PAIRS, ids=[f"{pair['kind']} {pair['answer']}" for pair in PAIRS])
def test_the_exam(pair):
    verdicts = {a: score(a, pair["answer"]) for a in pair["accept"] + pair["refuse"]}
    assert [a for a in pair["accept"] if not verdicts[a]["correct"]] == []
    assert [a for a in pair["refuse"] if verdicts[a]["correct"]] == []
    assert not any(verdict["verifier_error"] for verdict in verdicts.values())


def test_numbered_unknowns_are_roots_in_any_order():
    gold = "x_1=3, x_2=-5"
    for answer in ("-5, 3", "3,-5", r"x=3 \text{ or } x=-5", "x_1=-5,x_2=3", "x_2=-5, x_1=3", gold):
        assert score(answer, gold)["correct"], answer
    for answer in ("3,5", "-3,5", "3", "x_1=3", "x_1=3, x_2=-5, x_3=1"):
        assert not score(answer, gold)["correct"], answer


def test_the_exam_is_rich():
    kinds = {}
    for pair in PAIRS:
        kinds[pair["kind"]] = kinds.get(pair["kind"], 0) + len(pair["accept"]) + len(pair["refuse"])
        assert not set(pair["accept"]) & set(pair["refuse"])
    assert sum(kinds.values()) >= 1000 and min(kinds.values()) >= 5 and len(kinds) >= 30


@pytest.mark.parametrize("case", CASES, ids=[case["why"] for case in CASES])
def test_every_answer_of_the_fixture(case):
    result = competition_math.reward(completion_of(case), case)
    assert (result["correct"], result["answered"]) == (case["correct"], case["answered"])
    assert result["reward"] == (1.0 if case["correct"] else -0.5 if case["answered"] else -1.0)
    assert (result["answer"] is None) == (not case["answered"])


@pytest.mark.parametrize("name, rewards", [("simplerl", (1, -0.5, -1)), ("binary", (1, 0, 0))])
def test_reward_numbers(name, rewards):
    example = {"answer": "42", "reward": name}
    texts = ("\\boxed{42}", "\\boxed{43}", "42")
    assert tuple(competition_math.reward(text, example)["reward"] for text in texts) == rewards


@pytest.mark.verifier
def test_no_text_raises():
    rng = random.Random(0)
    pieces = (
        r"\frac \sqrt \boxed{ { } ( ) [ ] \{ \} , ; : = < \le \cup \pm \infty \text{ \begin{pmatrix} "
        r"\end{pmatrix} & \\ ^ _ ! % \% \$ $ + - / . 1 23 456 x i e cm p.m. \left \right \cdot \approx \in "
        "» « ٣ ½ \ud800 \0 or and \\overline{ \\! | a_2 12_3 12:30 9^9 ^{-1}"
    ).split(" ")
    for _ in range(4000):
        text = "".join(rng.choice(pieces) + " " * rng.randrange(2) for _ in range(rng.randrange(1, 14)))
        for gold in (text, "\\frac{1}{2}", "(1,2]", "x=3", "1,2", "\\text{Monday}", "4:30\\text{ p.m.}"):
            result = score(text, gold)
            assert isinstance(result["reward"], float) and isinstance(result["answer"], str | None)
            assert not result["verifier_error"], (gold, text, result["error"])
    for other in (None, 3, b"\\boxed{42}", ["x"], {}):
        assert competition_math.reward(other, {"answer": "42"})["correct"] is False


def test_a_failing_verifier_is_counted_and_the_next_verdict_is_right(monkeypatch):
    def fail(*answers):
        raise KeyError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(competition_math, "same", fail)
        result = score(r"\sqrt{1764.0}+x", "x+42")
        assert not competition_math.equivalent("7", "8")
    assert (result["verifier_error"], result["correct"], result["reward"]) == (1.0, False, -0.5)
    assert result["error"] == "KeyError: 'a fault'"
    result = score(r"\sqrt{1764.0}+x", "x+42")
    assert result["correct"] and result["verifier_error"] == 0.0 and "error" not in result


@pytest.mark.verifier
def test_eight_threads_agree_with_one():
    asked = [(a, pair["answer"]) for pair in PAIRS for a in pair["accept"] + pair["refuse"]]
    competition_math._verify.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        found = [*threads.map(lambda pair: score(*pair), asked)]
    competition_math._verify.cache_clear()
    assert found == [score(*pair) for pair in asked]


def test_votes_of_equivalent_answers():
    alike = competition_math.equivalent
    assert alike(r"\frac12", "0.5") and alike("x = 1/2", r"\dfrac{2}{4}") and alike("5", "x=5")
    assert alike(r"2\sqrt{3}", r"\sqrt{12}") and alike("2,1", "1, 2")
    assert not alike("(1,2)", "(2,1)") and not alike("(1,2)", "[1,2]") and not alike("5", "6")
    assert not alike("2^{4181}", "2^{4182}")
    example = {"answer": "(1,2)"}
    results = [
        competition_math.reward(rf"\boxed{{{a}}}", example) for a in ("(1,2)", "(2,1)", "(2, 1)", "(2,1)")
    ]
    answers, right = [r["answer"] for r in results], [r["correct"] for r in results]
    assert right == [True, False, False, False] and majority(answers, right, alike) == 0


def test_an_answer_joins_only_what_equals_the_first_of_its_class():
    """5 m and 5 s are no class, though 5 is equal to both."""
    alike = competition_math.equivalent
    metres, bare, seconds = r"5\text{ m}", "5", r"5\text{ s}"
    assert alike(metres, bare) and alike(bare, seconds) and not alike(metres, seconds)
    # 2 to 1 to 2 is a draw.
    votes = [metres, bare, seconds, "7", "7"]
    assert majority(votes, [True, True, False, False, False], alike) == 0.5
    assert majority([bare, metres, seconds, "7", "7"], [False] * 3 + [True] * 2, alike) == 0.0
    assert majority([metres, bare, seconds, "7", "7"], [False] * 3 + [True] * 2, alike) == 0.5


@pytest.mark.verifier
@pytest.mark.parametrize(
    "answer",
    [
        "+".join(f"{3 + 2 * k}^{{-{9000 - k}}}" for k in range(32)),
        r"\exp(\exp(\exp(\exp(1000))))", r"\sin(10^{10^{10}}x)", r"\tan(\exp(\exp(100)))",
        r"x^{99999^{999}}",
        r"(\sqrt{10}^{99999})^{99999}!", r"(x!)!!!!!!!", r"\binom{10^{99}}{\sqrt{10^{99}}}",
        r"\cosh(9^{9999}x)",
        r"\lfloor 10^{99999}\sqrt{n}\rfloor", r"(((9^{999})^{999})^{999})^{999}",
        r"\sqrt[10^{99}]{x^{10^{99}}}",
        r"\ln(\ln(\ln(10^{99999})))x", r"\max(9^{9999},x^{9999},\sin 9^{9999})", "x^{x^{9999}}",
        r"\sqrt" * 80 + "x", r"\frac" * 60 + "x", "-" * 300 + "x", "(" * 12 + "x" + ")^{99}" * 12,
        r"\text{m}/" * 40,
        r"\frac{1}{2004!}", "2004!x",
        "x_" * 100, "5 m " * 90,
    ],
)  # fmt: skip
def test_no_computation_is_without_bounds(answer):
    for gold in ("5", r"x+\sqrt{2}", "y=x^2", "(0,5)", "|x|<2", r"\lfloor n/2\rfloor"):
        for text in (answer, f"y={answer}", f"x<{answer}", f"({answer},5)"):
            result = score(text, gold)
            assert not result["correct"] and not result["verifier_error"]


@pytest.mark.verifier
def test_pairs_from_bug_reports(data_file):
    for pair in json.loads(data_file("math_pairs.json").read_text(encoding="utf-8")):
        for answer in pair["accept"] + pair["refuse"]:
            assert score(answer, pair["answer"])["correct"] == (answer in pair["accept"]), (pair, answer)


@pytest.mark.verifier
def test_the_real_rows(data_file):
    rows = random.Random(0).sample(read_jsonl(data_file("math_train.jsonl")), 1500)
    golds = [row["answer"] for row in rows]
    assert all(score(gold, gold)["correct"] for gold in golds)
    rng, tried, accepted = random.Random(1), 0, []
    for gold in golds:
        if numbers := list(re.finditer("[0-9]", gold)):
            at = rng.choice(numbers).start()
            other = gold[:at] + rng.choice([d for d in "123456789" if d != gold[at]]) + gold[at + 1 :]
            tried += 1
            accepted += [(gold, other)] * score(other, gold)["correct"]
    assert tried > 1400 and len(accepted) <= 0.0003 * tried, accepted


# ---------------------------------------------------------------- problems

ROWS = [
    {
        "problem": f"What is ${n}+{n}$?",
        "answer": str(2 * n),
        "level": n % 5 + 1,
        "subject": ("Algebra", "Counting & Probability")[n % 2],
    }
    for n in range(200)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def first(n, split="train", **options):
    return list(islice(competition_math.examples(split, **options), n))


def test_rows_of_a_file_are_split_and_disjoint(tmp_path):
    data = write(tmp_path / "rows.jsonl", ROWS)
    test, train = first(999, "test", data=data), first(500, data=data)
    problems = {e["problem"] for e in test}
    assert 8 <= len(test) <= 35 and not problems & {e["problem"] for e in train}
    assert len(problems | {e["problem"] for e in train}) == len(ROWS)
    assert train == first(500, data=data) != first(500, data=data, seed=1)
    shuffled = write(tmp_path / "other.jsonl", ROWS[::-1])
    assert problems == {e["problem"] for e in first(999, "test", data=shuffled)}
    assert first(1, "test", data=data, reward="binary")[0]["reward"] == "binary"
    everything = first(999, "test", data=data, test="all")
    assert sorted(e["problem"] for e in everything) == sorted(row["problem"] for row in ROWS)
    with pytest.raises(TaskError, match="no train problems"):
        first(1, data=data, test="all")


def test_levels_and_subjects(tmp_path):
    data = write(tmp_path / "rows.jsonl", [*ROWS, {"problem": "?", "answer": "1"}])
    levels = lambda **options: {e["level"] for e in first(400, data=data, **options)}
    assert levels(levels="3-5") == {3, 4, 5} and levels(levels="1,4") == {1, 4} and None in levels()
    assert {e["subject"] for e in first(400, data=data, subjects="counting and probability")} == {
        "Counting & Probability"
    }
    for options, expected in (
        ({"levels": "hard"}, "levels='hard': expected 5, 3-5 or 1,2"),
        ({"levels": "9"}, "no train problems with these levels"),
        ({"subjects": "algebro"}, "Unknown subject 'algebro'. Did you mean 'algebra'"),
        ({"format": "box"}, "Unknown format 'box'. Did you mean 'boxed'"),
        ({"test": "half"}, "Unknown test 'half'"),
    ):
        with pytest.raises(TaskError, match=re.escape(expected)):
            first(1, data=data, **options)


@pytest.mark.parametrize(
    "row, answer",
    [
        ({"problem": "p", "answer": "7"}, "7"),
        ({"question": "p", "answer": "7"}, "7"),
        ({"problem": "p", "answer": 7}, "7"),
        ({"problem": "p", "answer": 27.0}, "27"),
        ({"problem": "p", "answer": "073"}, "073"),
        ({"question": "p", "answer": "3+4=<<3+4=7>>7\n#### 7"}, "7"),
        ({"problem": "p", "solution": "\\boxed{1}, \\boxed{\\frac12}.", "type": "Algebra"}, "\\frac12"),
        ({"problem": "p", "solution": "\\boxed{1}", "answer": "2"}, "2"),
        ({"problem": "p", "answer": "\\boxed{3}", "level": "Level 4"}, "3"),
        ({"problem": "p", "solution": "\\boxed{1}, so $x=\\boxed 3$."}, "3"),
        ({"problem": "p", "solution": "$\\fbox 3.5.$"}, "3.5"),
        ({"problem": "p", "solution": "\\[\\boxed \\frac{1}{2}.\\]"}, "\\frac{1}{2}"),
        ({"problem": "p", "solution": "x &= \\boxed{2} \\\\ y"}, "2"),
        ({"problem": "p", "answer": ["36"]}, "36"),
        ({"problem": "p", "answer": [36.0]}, "36"),
        ({"problem": "p", "final_answer": "\\frac12"}, "\\frac12"),
        ({"problem": "p", "answer": "", "solution": "\\boxed{4}"}, "4"),
        ({"prompt": "p", "reward_model": {"ground_truth": "7", "style": "rule"}}, "7"),
        (
            {
                "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
                "reward_model": {"ground_truth": ["7"]},
                "extra_info": {"index": 3},
            },
            "7",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "p Think step by step."}],
                "reward_model": {"ground_truth": "7"},
                "extra_info": {"question": "p", "answer": "3+4=7", "level": 4},
            },
            "7",
        ),
    ],
)  # fmt: skip
def test_the_fields_of_data_sets(tmp_path, row, answer):
    (example,) = first(9, "test", data=write(tmp_path / "rows.jsonl", [row]), test="all")
    assert (example["problem"], example["answer"]) == ("p", answer)
    assert example["subject"] == row.get("type") and example["level"] == (4 if "level" in str(row) else None)


def test_verls_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "data_source": "math",
            "prompt": [{"content": f"What is ${n}+{n}$?", "role": "user"}],
            "reward_model": {"ground_truth": str(2 * n), "style": "rule"},
            "extra_info": {"index": n, "split": "train"},
        }
        for n in range(3)
    ]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    examples = first(9, "test", data=str(path), test="all")
    assert {e["problem"]: e["answer"] for e in examples} == {
        f"What is ${n}+{n}$?": str(2 * n) for n in range(3)
    }


def test_a_row_without_an_answer_does_not_block_a_large_file(tmp_path, capsys):
    bad = {"problem": "?", "solution": "No box."}
    data = write(tmp_path / "rows.jsonl", [*ROWS, bad, {**bad, "answer": math.nan}])
    assert len(first(999, "test", data=data, test="all")) == len(ROWS)
    warning = capsys.readouterr().err
    assert "2 of 202 rows are left out: Row 201 of" in warning and "has no answer" in warning
    assert "Row 202" in warning and "has the answer nan" in warning


def test_rows_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(TaskError, match="ships no problems: say data=NAME, one of math500, aime24"):
        first(1)
    for row, expected in (
        ({"text": "p", "answer": "1"}, "lacks problem or question or .*: found the fields text, answer"),
        ({"problem": "p"}, "lacks answer or final_answer or "),
        ({"problem": " ", "answer": "1"}, "Row 1 .* no problem text"),
        ({"prompt": [{"role": "system", "content": "s"}], "answer": "1"}, "Row 1 .* no problem text"),
        ({"problem": "p", "answer": ["1", "2"]}, "Row 1 .* has 2 answers: expected one"),
        ({"problem": "p", "answer": []}, "Row 1 .* has 0 answers"),
        ({"problem": "p", "answer": [None]}, "Row 1 .* has the answer None"),
        (
            {"problem": "p", "answer": True},
            "Row 1 .* has the answer True: expected a text or a finite number",
        ),
        ({"problem": "p", "answer": math.nan}, "Row 1 .* has the answer nan"),
        ({"problem": "p", "answer": -math.inf}, "Row 1 .* has the answer -inf"),
        ({"problem": "p", "answer": {"value": 1}}, "Row 1 .* has the answer {'value': 1}"),
        ({"problem": "p", "solution": "no box"}, "Row 1 .* no answer"),
        ({"problem": "p", "answer": ""}, "Row 1 .* no answer"),
    ):
        with pytest.raises(TaskError, match=expected):
            first(1, data=write(tmp_path / "rows.jsonl", [row]))


def test_evaluation_sets_by_name(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*name, split):
        asked.append((*name, split))
        text = f"{name} {split}"
        return datasets.Dataset.from_list(
            [{"problem": text, "answer": "1"}, {"problem": "both", "answer": "2"}]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name, source in {
        "math500": ("HuggingFaceH4/MATH-500", "test"),
        "HuggingFaceH4/MATH-500": ("HuggingFaceH4/MATH-500", "test"),
        "aime24": ("HuggingFaceH4/aime_2024", "train"),
        "amc23": ("math-ai/amc23", "test"),
        "gsm8k": ("openai/gsm8k", "main", "test"),
        "math": ("EleutherAI/hendrycks_math", "precalculus", "test"),
        "math-lighteval": ("DigitalLearningGmbH/MATH-lighteval", "test"),
        "someone/else": ("someone/else", "train"),
    }.items():
        competition_math._problems.cache_clear()
        assert len(first(99, "test", data=name, test="all")) == (14 if name == "math" else 2)
        assert asked[-1] == source
    train = {e["problem"] for e in first(50, data="gsm8k")}
    # The problem in both splits is a test problem.
    assert train == {"('openai/gsm8k', 'main') train"}
    with pytest.raises(TaskError, match="data=math500 is for evaluation only"):
        first(1, data="math500")


def test_the_hub_out_of_reach_says_how_to_get_the_file(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for name, hub in (("math500", "HuggingFaceH4/MATH-500"), ("gsm8k", "openai/gsm8k")):
        expected = f"no route to host.*hf download {hub} --repo-type dataset .*data=FILE test=all"
        with pytest.raises(TaskError, match=expected):
            first(1, "test", data=name)


def test_the_prompt():
    example = {"problem": "What is $\\frac{1}{2}+\\frac{1}{2}$?"}
    assert competition_math.question(example) == example["problem"]
    asks = "Please reason step by step, and put your final answer within \\boxed{}."
    assert competition_math.question({**example, "wording": "boxed"}) == f"{example['problem']}\n{asks}"
    assert render("qwen-math", competition_math.question(example)) == (
        f"<|im_start|>system\n{asks}<|im_end|>\n<|im_start|>user\n{example['problem']}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render("abel", competition_math.question(example)) == (
        f"Question:\n{example['problem']}\nAnswer:\nLet's think step by step.\n"
    )


# ---------------------------------------------------------------- python tinyr1.py tasks NAME [--attack]


def attacked(monkeypatch, capsys, *arguments):
    # on a busy machine
    monkeypatch.setattr("commands.tasks.SLOWEST", 60.0)
    return main([*arguments, "--attack"]), capsys.readouterr().out


def test_the_attack_on_countdown(monkeypatch, capsys):
    code, printed = attacked(monkeypatch, capsys, "countdown")
    assert code == 0 and "0 wrong verdicts" in printed and "0 in both splits" in printed


def test_the_attack_finds_a_weak_verifier(monkeypatch, capsys, tmp_path):
    path = tmp_path / "weak.py"
    path.write_text(
        "import itertools\n"
        "def examples(split): return iter([{'n': 12}, {'n': 34}])\n"
        "def question(example): return f\"Say {example['n']}.\"\n"
        "def reward(completion, example):\n"
        "    right = str(example['n']) in completion\n"
        "    return {'reward': float(right), 'correct': right}\n"
        "def gold(example): return str(example['n'])\n"
        "def state(answer, example): return f'<answer>{answer}</answer>'\n"
    )
    code, printed = attacked(monkeypatch, capsys, str(path))
    assert code == 1 and "12: in the thinking part only: accepted" in printed
    assert "2 problems are in both splits" in printed


def test_the_task_is_shown_without_data(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tasks", "competition_math", "--template", "qwen-math"])
    main()
    printed = capsys.readouterr().out
    assert "What is $6\\cdot 7$?<|im_end|>" in printed and all(case["why"] in printed for case in CASES)
