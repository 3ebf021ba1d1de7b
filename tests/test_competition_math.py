"""Competition mathematics: the exam of answer pairs, hostile answers, workers that are killed, data sets."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
from timing import fastest

from commands.tasks import FIXTURES, completion_of, main
from runtime.metrics import majority
from tasks import TaskError, competition_math, read_jsonl, render
from tasks._workers import WorkerError, Workers

CASES = json.loads((FIXTURES / "competition_math_answers.json").read_text(encoding="utf-8"))
PAIRS = json.loads((FIXTURES / "competition_math_pairs.json").read_text(encoding="utf-8"))
DATA = Path(__file__).parents[2] / "shared/data/math_train.jsonl"


@pytest.fixture(scope="module", autouse=True)
def started():
    """The verifier's workers, with time enough on a busy machine."""
    workers = competition_math.workers
    workers.stop()
    workers.seconds, workers.total = 10.0, 60.0
    workers._reset()
    workers.start()


def score(answer, gold="42", **style):
    return competition_math.reward(f"\\boxed{{{answer}}}", {"answer": gold, **style})


# ---------------------------------------------------------------- the verifier


@pytest.mark.parametrize("pair", PAIRS, ids=[f"{pair['kind']} {pair['answer']}" for pair in PAIRS])
def test_the_exam(pair):
    verdicts = {a: score(a, pair["answer"]) for a in pair["accept"] + pair["refuse"]}
    assert [a for a in pair["accept"] if not verdicts[a]["correct"]] == []
    assert [a for a in pair["refuse"] if verdicts[a]["correct"]] == []
    assert not any(verdict["verifier_error"] for verdict in verdicts.values())


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


def test_no_text_raises(monkeypatch):
    monkeypatch.setattr(competition_math.workers, "ask", lambda request: {"same": False})
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
    for other in (None, 3, b"\\boxed{42}", ["x"], {}):
        assert competition_math.reward(other, {"answer": "42"})["correct"] is False


def test_a_failing_verifier_is_counted_and_the_next_verdict_is_right(monkeypatch):
    def fail(request):
        raise WorkerError("time is up")

    with monkeypatch.context() as patch:
        patch.setattr(competition_math.workers, "ask", fail)
        result = score(r"\sqrt{1764.0}+x", "x+42")
    assert (result["verifier_error"], result["correct"], result["reward"]) == (1.0, False, -0.5)
    assert result["error"] == "time is up"
    result = score(r"\sqrt{1764.0}+x", "x+42")
    assert result["correct"] and result["verifier_error"] == 0.0 and "error" not in result


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


LONG_SUM = "+".join(f"{3 + 2 * k}^{{-{9000 - k}}}" for k in range(32))


def test_no_sum_is_too_long():
    assert not score(LONG_SUM, "5")["correct"]


@pytest.mark.timing
def test_verdicts_are_fast():
    texts = [(completion_of(case), case) for case in CASES]
    for text, example in [*texts, (rf"\boxed{{{LONG_SUM}}}", {"answer": "5"})]:
        _, seconds = fastest(lambda text=text, example=example: competition_math.reward(text, example), 1)
        assert seconds < 2, text[:80]


@pytest.mark.skipif(not DATA.is_file(), reason="the real data are not here")
def test_the_real_rows():
    golds = [row["answer"] for row in random.Random(0).sample(read_jsonl(DATA), 1500)]
    assert all(score(gold, gold)["correct"] for gold in golds)
    rng, tried, accepted = random.Random(1), 0, []
    for gold in golds:
        if numbers := list(re.finditer("[0-9]", gold)):
            at = rng.choice(numbers).start()
            other = gold[:at] + rng.choice([d for d in "123456789" if d != gold[at]]) + gold[at + 1 :]
            tried += 1
            accepted += [(gold, other)] * score(other, gold)["correct"]
    assert tried > 1400 and len(accepted) <= 0.003 * tried, accepted


# ---------------------------------------------------------------- workers

ECHO = """
import json, sys, time
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request == "hang": time.sleep(100)
    if request == "die": sys.exit()
    print(json.dumps({"got": request}), flush=True)
"""


@pytest.fixture
def echo(tmp_path):
    path = tmp_path / "echo.py"
    path.write_text(ECHO)
    workers = Workers([str(path)], 2, 1.0, 60.0)
    yield workers
    workers.stop()


def test_a_worker_that_hangs_is_killed_and_replaced(echo):
    echo.start()
    hung = [worker.process for worker in echo.all]
    for bad in ("hang", "die", "hang", "die"):
        with pytest.raises(WorkerError, match="time is up|died"):
            echo.ask(bad)
        assert echo.ask(bad + "s") == {"got": bad + "s"}
    assert [process.returncode is None for process in hung] == [True, False]  # they took turns


def test_workers_answer_many_threads_in_their_turn(echo):
    replies = {}
    threads = [threading.Thread(target=lambda n=n: replies.update({n: echo.ask(n)})) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == {n: {"got": n} for n in range(20)}


def test_all_busy_is_an_error(echo):
    echo.start()
    echo.total, errors = 0.5, []

    def ask():
        with pytest.raises(WorkerError) as error:
            echo.ask("hang")
        errors.append(str(error.value))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 6 and "all workers are busy" in errors


@pytest.mark.timing
def test_a_worker_that_hangs_is_an_error_in_time(echo):
    echo.start()
    echo.seconds, echo.total = 0.3, 1.9

    def ask():
        with pytest.raises(WorkerError):
            echo.ask("hang")

    for _ in range(3):
        assert fastest(ask, 1)[1] < 1.9


def test_stopped_workers_start_again(echo):
    echo.start()
    processes = [worker.process for worker in echo.all]
    echo.stop()
    assert all(process.returncode is not None for process in processes)
    assert echo.ask(2) == {"got": 2}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX")
def test_the_worker_of_mathematics_ends_by_itself(tmp_path):
    """Its own alarm ends it in the midst of a computation, and the end of its input when it has none."""
    command = [sys.executable, competition_math.__file__.replace("competition_math", "_math_worker"), "0.05"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as worker:
        assert worker.stdout.readline() == b"ready\n"
        modules = Path(f"/proc/{worker.pid}/maps")
        assert not modules.exists() or "libtorch" not in modules.read_text()
        slow = r"\frac{1}{" * 11 + "x" + "}" * 11
        worker.stdin.write(json.dumps(["x", slow]).encode() + b"\n")
        worker.stdin.flush()
        assert worker.wait(timeout=120) == -signal.SIGALRM
    with subprocess.Popen(command, **pipes) as worker:
        worker.stdin.close()
        assert worker.wait(timeout=120) == 0


def test_workers_die_with_their_parent(tmp_path):
    script = (
        "import os, signal; from tasks import competition_math as m; m.workers.start(); "
        "print(*[w.process.pid for w in m.workers.all], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=FIXTURES.parents[1]
    )
    pids = [int(pid) for pid in out.stdout.split()]
    assert len(pids) == competition_math.WORKERS
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid):
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False


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
    assert train == {"('openai/gsm8k', 'main') train"}  # the problem in both splits is a test problem
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
    assert code == 1 and "12: in the thinking only: accepted" in printed
    assert "2 problems are in both splits" in printed


def test_the_task_is_shown_without_data(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tasks", "competition_math", "--template", "qwen-math"])
    main()
    printed = capsys.readouterr().out
    assert "What is $6\\cdot 7$?<|im_end|>" in printed and all(case["why"] in printed for case in CASES)
