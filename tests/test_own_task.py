"""A task of one's own: the example, what `tinyr1.py tasks FILE` shows, and what training says of it."""

import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_train import QUICK

import tasks
import tinyr1
from commands.tasks import main
from runtime import models
from tasks import TaskError

HERE = Path(__file__).resolve().parent.parent
EXAMPLE = HERE / "examples" / "my_task.py"


def test_the_readme_shows_the_example():
    assert re.search(r'```python\n("""my_task.py.*?)```', (HERE / "README.md").read_text(), re.S)[1] == (
        EXAMPLE.read_text()
    )


def test_the_example_keeps_the_protocol():
    task = tasks.load(str(EXAMPLE))
    test, train = list(task.examples("test")), list(islice(task.examples("train"), 2000))
    assert len(test) == 80 and not tasks.in_both_splits(train, test)
    assert (
        train == list(islice(task.examples("train"), 2000)) != list(islice(task.examples("train", 1), 2000))
    )
    example = {"a": 40, "b": 18}
    assert task.question(example) == "What is 40*18?"
    right = task.reward("<think>40*10=400\n400+320=720</think>\n<answer>720</answer>", example)
    assert right == {"reward": 1.0, "correct": True, "answered": 1.0, "adds": 1.0}
    wrong = {"reward": 0.0, "correct": False, "adds": 0.0}
    for text in ("", "720", "<answer>721</answer>", "<think><answer>720</answer>"):
        assert task.reward(text, example) == wrong | {"answered": float("721" in text)}


def test_the_miniature_can_be_trained_on_the_example():
    """The base model is right now and then, so that there is something to reward."""
    cfg = tinyr1.parse(["mini", "--task", str(EXAMPLE), "--precision", "fp32"])[0]
    model, tokenizer = models.load_model(cfg.model, torch.device("cpu"))
    task = tasks.load(cfg.task)
    held = tinyr1.held_out(task, cfg, tokenizer)
    metrics, _ = tinyr1.evaluate(model, tokenizer, task, held, 2, cfg)
    assert 0.05 < metrics["accuracy"] < 0.3 and metrics["no_answer_share"] < 0.1


# ---------------------------------------------------------------- python tinyr1.py tasks FILE

HEAD = """
import itertools

def examples(split, **options):
    return itertools.cycle([{"n": 1}, {"n": 3}]) if split == "train" else iter([{"n": 1}, {"n": 2}])

def question(example):
    return "What is 2?"
"""
PLAIN = (
    HEAD
    + """
def reward(completion, example):
    right = completion == str(example["n"])
    return {"reward": float(right), "correct": right}
"""
)


@pytest.fixture
def own(tmp_path):
    """The path of a task file with this source."""

    def write(source):
        path = tmp_path / "own.py"
        path.write_text(source)
        return str(path)

    return write


@pytest.fixture
def command(capsys):
    """The exit code of `python tinyr1.py tasks` or its error message, and what it prints."""

    def run(*argv):
        try:
            code = main([*argv])
        except TaskError as error:
            code = str(error)
        return code, capsys.readouterr().out

    return run


def test_a_right_answer_is_shown(command):
    code, printed = command(str(EXAMPLE))
    assert code == 0 and re.search(r"1\.0 ✓  <answer>720</answer> +the task's own right answer", printed)
    assert "gold(example)" not in printed
    for name in ("countdown", "multiplication"):
        assert "✓" in command(name)[1].split("own right answer")[0].splitlines()[-1]


def test_a_task_without_a_right_answer_is_told_how_to_add_one(command, own):
    code, printed = command(own(PLAIN))
    assert code == 0 and "give the task gold(example) -> a right answer, and state(answer" in printed


def test_the_mistakes_of_a_task_are_one_paragraph(command, own):
    code, printed = command(own(HEAD + "\ndef reward(completion, example): return True\n"))
    assert "reward() returned bool; expected a dict" in printed
    assert code.startswith("Every one of 4 verdicts") and "returned bool" in code
    broken = PLAIN.replace('"What is 2?"', 'example["m"]')
    for arguments in ([], ["--attack"]):
        code, _ = command(own(broken), *arguments)
        assert re.search(r"own\.py fails in question, line 8 of .*: KeyError: 'm'", code)
    code, _ = command(own(PLAIN.replace('[{"n": 1}, {"n": 2}]', "[]")))
    assert "has no test problems" in code


def test_the_attack_counts_once_and_compares_examples(command, own):
    code, printed = command(own(PLAIN), "--attack")
    assert code == 1 and "1000 training and 2 test problems, 1 in both splits" in printed
    assert "1 problems are in both splits, such as 'What is 2?'" in printed
    code, printed = command(own(PLAIN.replace('[{"n": 1}, {"n": 2}]', '[{"n": 2}]')), "--attack")
    assert code == 0 and "1 test problems, 0 in both splits" in printed


# ---------------------------------------------------------------- training


def test_training_warns_of_problems_in_both_splits(tiny, own, tmp_path, capsys):
    argv = ["train", "--model", tiny, "--out", str(tmp_path), "--steps", "1", *QUICK]
    assert tinyr1.main([*argv, "--task", own(PLAIN), "--name", "a"]) == 0
    printed = capsys.readouterr().out
    assert "1 of the 2 held-out problems are training problems, too, such as {'n': 1}" in printed
    assert tinyr1.main([*argv, "--task", str(EXAMPLE), "--name", "b"]) == 0
    assert "held-out problems are training" not in capsys.readouterr().out
