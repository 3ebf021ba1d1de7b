"""What a task returns, however wrong, wastes no run: verdicts, examples, questions, prompts."""

import itertools
import json
import sys
import types

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tinyr1
from runtime import runfolder, scoring
from runtime.problems import Problem
from runtime.runfolder import find_checkpoints, read_checkpoint
from runtime.scoring import score
from tasks import TaskError

QUICK = "--prompts 2 --group 4 --max_new_tokens 8 --rewards task --eval_problems 2 --eval_samples 2 --lr 1e-4"
QUICK = [*QUICK.split(), "--probe_every", "0"]
GOOD = {"reward": 1.0, "correct": True}


def task_of(reward, **functions):
    return types.SimpleNamespace(reward=reward, __name__="made_up", __file__=__file__, **functions)


@pytest.fixture(autouse=True)
def nothing_shown(monkeypatch):
    monkeypatch.setattr(scoring, "_shown", set())


def verdicts(reward, texts=("a", "b"), **options):
    """Verdicts on the texts as samples of one problem."""
    return score(task_of(reward), [Problem({"nums": [1, 2]}, "", [])], [*texts], len(texts), **options)


@pytest.fixture
def train(tiny, tmp_path):
    """Train two steps on a task file with this source; returns the exit status and the run folder."""

    def train(source, *argv, examples="itertools.repeat({'n': 1}, 2 if split == 'test' else 10**6)"):
        path = tmp_path / "odd.py"
        path.write_text(
            "import itertools, sys, time\n"
            f"def examples(split): return {examples}\n"
            "def question(e): return 'What is 2?'\n"
            "def reward(c, e): return {'reward': float(len(c) % 2), 'correct': False}\n" + source
        )
        argv = [
            "--model",
            tiny,
            "--task",
            path,
            "--out",
            tmp_path,
            "--name",
            "run",
            "--steps",
            2,
            *QUICK,
            *argv,
        ]
        return tinyr1.main(["train", *map(str, argv)]), tmp_path / "run"

    return train


def odd(value):
    """A reward that is `value` for the text b and a good one for others."""
    return lambda text, example: value() if text == "b" else GOOD


FAILS = {
    "exit": lambda: sys.exit(),
    "os error": lambda: open("/nowhere"),
    "nan": lambda: {"reward": float("nan"), "correct": True},
    "infinite": lambda: {"reward": float("-inf"), "correct": False},
    "beyond float": lambda: {"reward": 10**400, "correct": True},
    "numpy nan": lambda: {"reward": np.float32("nan"), "correct": True},
    "text as reward": lambda: {"reward": "1.0", "correct": True},
    "None as reward": lambda: {"reward": None, "correct": True},
    "complex": lambda: {"reward": 1j, "correct": True},
    "too large for float32": lambda: {"reward": 1e300, "correct": True},
    "a text as verifier_error": lambda: GOOD | {"verifier_error": "timeout"},
    "text as correct": lambda: {"reward": 1.0, "correct": "False"},
    "None as correct": lambda: {"reward": 1.0, "correct": None},
    "no correct": lambda: {"reward": 1.0},
    "no reward": lambda: {"correct": True},
    "a bool": lambda: True,
    "None": lambda: None,
    "a pair": lambda: (1.0, True),
    "a key that is nan": lambda: GOOD | {"steps": float("nan")},
    "a key that is huge": lambda: GOOD | {"steps": 10**400},
    "a key that is a list": lambda: GOOD | {"parsed": [1, 2]},
    "never returns": lambda: [0 for _ in itertools.repeat(0) if False],
    "a large power": lambda: 9**9**9,
}


@pytest.mark.parametrize("kind", FAILS)
def test_a_failed_verdict_costs_one_sample_and_is_counted(kind, capsys):
    bad, good = verdicts(odd(FAILS[kind]), "ba", seconds=0.3)
    assert bad["verifier_error"] == 1 and bad["reward"] == 0 and bad["correct"] is False and bad["error"]
    assert good == {"verifier_error": 0.0, **GOOD}
    told = capsys.readouterr().err
    assert "The completion was 'b'" in told and bad["error"].split(":")[0] in told


def test_a_timeout_is_not_swallowed_by_the_tasks_own_except():
    def stubborn(text, example):
        while True:
            try:
                sum(range(10**6))
            except Exception:
                pass

    (verdict,) = verdicts(stubborn, "a", seconds=0.2)
    assert verdict["verifier_error"] == 1 and "--verdict_seconds" in verdict["error"]


def test_no_bare_nan_in_a_json_file(tmp_path):
    odd = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (2.0, float("-inf"))}, "e": "NaN"}
    runfolder.write_json(tmp_path / "x.json", odd)
    plain = {"a": None, "b": [1.0, None], "c": {"d": [2.0, None]}, "e": "NaN"}
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == plain
    assert json.loads(runfolder.to_json(odd), parse_constant=pytest.fail) == plain


def test_ctrl_c_is_not_a_failed_verdict():
    def stopped(text, example):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verdicts(stopped)


def test_numbers_of_other_libraries_become_plain_ones():
    given = {"reward": np.float32(0.5), "correct": np.bool_(True), "a": torch.tensor(2.0), "b": np.int64(3)}
    given |= {"answer": 7, "note": "text", "nothing": None, "flag": True}
    (verdict,) = verdicts(lambda text, example: dict(given), "a")
    assert json.loads(json.dumps(verdict)) == {
        "verifier_error": 0.0, "reward": 0.5, "correct": True, "a": 2.0, "b": 3, "answer": "7",
        "note": "text", "nothing": None, "flag": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "key", ["step", "completion", "accuracy", "loss", "time/x", "pass@3", "eval/accuracy"]
)
def test_a_key_of_our_own_is_refused_with_the_list(key):
    for value in (1.0, "text"):
        with pytest.raises(TaskError, match="Reserved are accuracy, accuracy_ci"):
            verdicts(lambda text, example, value=value: GOOD | {key: value})


def test_a_reserved_key_is_refused_before_training(train, capsys):
    assert train("def reward(c, e): return {'reward': 1.0, 'correct': True, 'step': 3}")[0] == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyr1: The task") and "'step'" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "algo", ["ppo --kl_target 1", "prime --min_pass_rate 0 --max_pass_rate 1", "grpo --kl 0.1"]
)
def test_every_name_that_tinyr1_writes_is_reserved(train, rows, algo):
    status, run = train("", "--algo", *algo.split())
    assert status == 0
    written = {key for row in rows(run / "metrics.jsonl") for key in row}
    written |= {
        key for file in ("samples", "eval_samples") for row in rows(run / f"{file}.jsonl") for key in row
    }
    written = {k for k in written if not k.startswith(scoring.RESERVED_BEGINNINGS)}
    assert written - scoring.RESERVED == {"reward", "correct", "verifier_error"}
    evals = [k.removeprefix("eval/") for r in rows(run / "metrics.jsonl") for k in r if k.startswith("eval/")]
    evals = {k for k in evals if not k.startswith(scoring.RESERVED_BEGINNINGS)}
    assert evals - scoring.RESERVED == {"reward", "verifier_error"}


def test_a_reward_cannot_change_the_example():
    def pops(text, example):
        example["nums"].pop()
        return {"reward": float(len(example["nums"])), "correct": False}

    assert [v["reward"] for v in verdicts(pops, "abc")] == [1.0, 1.0, 1.0]


def test_a_question_cannot_change_the_example(train, rows):
    status, run = train("def question(e): return f'What is {e.pop(\"n\")}?'")
    assert status == 0 and {row["example"]["n"] for row in rows(run / "samples.jsonl")} == {1}


TASKS = {  # source -> what the message must contain
    "def question(e): return 1 / 0": "question() of the task",
    "def question(e): return None": "returned NoneType; expected a text",
    "def question(e): return sys.exit()": "SystemExit",
    "def examples(split): return None": "examples() of the task",
    "def examples(split): return ['a']": "yielded str; expected a dict",
    "def examples(split): return iter([])": "no held-out problems",
    "def examples(split): raise ValueError('oops')": "ValueError: oops",
    "def examples(split):\n    yield {'n': 1}\n    raise TypeError('within')": "TypeError: within",
    "def examples(split): raise TypeError('within')": "at line 6 (`def examples",
    "def examples(): return []": "does not take the options",
    "def reward(c, e): return True": "reward() returned bool",
    "def reward(c, e): return {'reward': 1.0}": "without 'correct'",
    "def reward(c, e): raise RuntimeError('oops')": "Every one of 4 verdicts",
    "def reward(c, e): sys.exit()": "SystemExit",
}


@pytest.mark.parametrize("source", TASKS)
def test_a_broken_task_stops_the_run_with_one_paragraph(train, capsys, source):
    status, run = train("\n" + source)
    assert status == 2 and not (run / "final").exists()
    told = capsys.readouterr().err.splitlines()
    (error,) = [line for line in told if line.startswith("tinyr1: ")]
    assert TASKS[source] in error and "odd.py" in error
    assert "does not take" not in error or "def examples():" in source
    # a failed verdict is shown with its traceback, other errors are not
    assert told[-1] == error and ("completion was" in "".join(told)) == ("def reward" in source)
    assert ("Traceback" in "".join(told)) == (
        "raise Runtime" in source or "exit()" in source and "reward" in source
    )


def test_some_failed_verdicts_are_counted_and_told(train, capsys, rows):
    status, run = train(
        "def reward(c, e): return {'reward': 1.0, 'correct': 1 // (len(c) % 2)}", "--eval_samples", 16
    )
    assert status == 0
    output = capsys.readouterr()
    assert "verdicts that failed" in output.out and "verdicts failed in 2 of 2 steps" in output.out
    assert output.err.count("ZeroDivisionError") == 1  # the first one, with its traceback
    errors = [row["verifier_error"] for row in rows(run / "metrics.jsonl") if "reward_std" in row]
    assert all(0 < error < 1 for error in errors)
    assert json.loads((run / "summary.json").read_text())["remarks"]


def test_a_run_without_a_signal_says_so(train, capsys):
    assert train("def reward(c, e): return {'reward': 0.0, 'correct': False}")[0] == 0
    assert "in no step did the samples of a group differ in reward" in capsys.readouterr().out


LONG = "def question(e): return 'What is 2?' + ' 1' * e['n']"
MIXED = "({'n': n} for n in itertools.islice(itertools.cycle([1, 2000, 1, 1]), 4 if split == 'test' else 99))"


def test_overlong_prompts_are_left_out_and_counted(train, capsys, rows):
    status, run = train(LONG, "--eval_problems", 9, examples=MIXED)
    assert status == 0
    assert "1 held-out problems of" in capsys.readouterr().out
    steps = [row for row in rows(run / "metrics.jsonl") if "reward_std" in row]
    assert [row["overlong_prompts"] for row in steps] == [1, 1]
    assert all(row["example"]["n"] == 1 for row in rows(run / "eval_samples.jsonl"))


@pytest.mark.parametrize("where", ["'test'", "'train'"])
def test_nothing_but_overlong_prompts_is_an_error(train, capsys, where):
    made = f"itertools.repeat({{'n': 2000 if split == {where} else 1}}, 2 if split == 'test' else 10**6)"
    assert train(LONG, examples=made)[0] == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tinyr1: ") and "max_new_tokens" in error


def test_a_resumed_run_skips_the_same_prompts(train, tmp_path, rows):
    """The data cursor counts the prompts that were drawn, not those that were left out."""
    argv = ("--save_every", 1, "--eval_problems", 2)
    status, run = train(LONG, *argv, examples=MIXED)
    assert status == 0
    state = read_checkpoint(find_checkpoints(run)[-1])
    assert state["drawn"] == 4
    AutoModelForCausalLM.from_pretrained(run / "final")


def test_a_task_may_say_that_its_verifier_failed(train, capsys):
    (verdict,) = verdicts(lambda text, example: GOOD | {"verifier_error": 1.0}, "a")
    assert verdict["verifier_error"] == 1 and verdict["error"]
    source = "def reward(c, e): return {'reward': 0.0, 'correct': False, 'verifier_error': 1.0}"
    assert train(source)[0] == 2 and "Every one of 4 verdicts" in capsys.readouterr().err


def test_a_slow_verdict_is_announced_with_its_text(capsys):
    def stubborn(text, example):
        for _ in range(2):
            try:
                while True:
                    pass
            except BaseException:
                pass
        return GOOD

    verdicts(stubborn, ["a text"], seconds=0.2)
    told = capsys.readouterr().err
    assert told.count("no verdict within 0.2 seconds") == 1 and "'a text'" in told


def test_a_limit_of_no_seconds_is_refused(train, capsys):
    for seconds in (0, -1):
        assert train("", "--verdict_seconds", seconds)[0] == 2
        assert "--verdict_seconds" in capsys.readouterr().err


def test_half_a_character_is_refused_in_one_paragraph(train, capsys):
    assert train("def question(e): return 'What is \\ud800?'")[0] == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyr1: The tokenizer cannot encode") and len(error.splitlines()) == 1


SHOWN = {
    "def reward(c, e): sys.exit()": "Every one of",
    "def reward(c, e): return True": "reward() returned bool",
    "def reward(c, e): return {'reward': float('nan'), 'correct': True}": "not a finite number",
    "def reward(c, e): return {'reward': 1.0, 'correct': True, 'step': 1}": "Reserved are",
    "def examples(split): return None": "expected an iterator of dicts",
    "def examples(split): sys.exit()": "fails in examples",
    "def question(e): return None": "expected an iterator of dicts, and a text",
}


@pytest.mark.parametrize("source", SHOWN)
def test_tasks_shows_what_training_would_say(source, tmp_path, capsys):
    path = tmp_path / "odd.py"
    path.write_text(
        "import sys\ndef examples(split): return [{'n': 1}]\ndef question(e): return 'What is 2?'\n"
        f"def reward(c, e): return {{'reward': 0.0, 'correct': False}}\n{source}\n"
    )
    assert tinyr1.main(["tasks", str(path)]) == 2
    error = capsys.readouterr().err.rpartition("tinyr1: ")[2]
    assert SHOWN[source] in error and "Traceback" not in error
