"""Evaluation: figures by hand, many sets, resuming, grading stored samples again, a response's end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import models
import tasks
import tinyr1
from metrics import evaluation, majority, pass_at_k
from runfolder import UserError

HERE = Path(__file__).resolve().parent.parent
QUICK = "--eval_problems 6 --eval_samples 2 --max_new_tokens 8".split()


def run(*argv):
    return tinyr1.main(["eval", *map(str, argv)])


def test_pass_at_k_and_majority():
    assert pass_at_k(4, 1, 1) == 0.25 and pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(4, 0, 4) == 0 and pass_at_k(4, 1, 4) == 1
    assert majority(["a", "a", "b"], [True, True, False]) == 1
    assert majority(["a", "b"], [True, False]) == 0.5
    assert majority(["a", None, None], [True, False, False]) == 1
    assert majority([None], [False]) == 0
    alike = lambda a, b: float(a) == float(b)
    assert majority(["1", "2", "1.0"], [False, True, False]) == pytest.approx(1 / 3)
    assert majority(["1", "2", "1.0"], [False, True, False], alike) == 0


def record(correct, answer, tokens, finished=True, **more):
    return {"example": {}, "completion": "", "correct": correct, "answer": answer, "tokens": tokens,
            "finished": finished, "reward": float(correct), **more}  # fmt: skip


def test_the_figures_of_an_evaluation_by_hand():
    records = [
        record(True, "1", 2),
        record(False, "2", 4),
        record(True, "1", 2),
        record(True, "1", 6, extra=3),
    ]
    records += [record(False, None, 9, False)] * 3 + [record(True, "5", 5)]
    m = evaluation(records, 4)
    assert m["accuracy"] == m["pass@1"] == 0.5 and m["n"] == 8 and m["problems"] == 2
    assert m["pass@2"] == pytest.approx((1 + 0.5) / 2) and m["pass@4"] == 1 and m["cons@4"] == 1
    assert m["no_answer_share"] == m["cut_share"] == 3 / 8 and m["extra"] == 3 and m["reward"] == 0.5
    assert m["tokens_correct"] == 15 / 4 and m["tokens_wrong"] == 4 and m["tokens_cut"] == 9
    assert m["accuracy_ci"] == [0.25, 0.75]  # of two problems


def test_sets_and_groups(tiny, tmp_path, rows, capsys):
    data = tmp_path / "rows.jsonl"
    lines = [
        {"problem": f"What is {i}+1?", "answer": str(i + 1), "level": f"Level {i % 2}"} for i in range(6)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sets = "countdown:wording=short,multiplication:wording=short,math500"
    argv = ["--model", tiny, "--task", sets, "--data", f"math500={data}", "--greedy", True, *QUICK]
    assert run(*argv, "--out", tmp_path, "--name", "x") == 0
    output, folder = capsys.readouterr().out, tmp_path / "eval-x"
    record = json.loads((folder / "eval.json").read_text())
    found, seconds = record["sets"], record["seconds"]
    assert set(seconds) == {"sampling", "verdicts"} and f"sampling {seconds['sampling']:.1f} s" in output
    assert list(found) == sets.split(",") and all({"greedy", "cons@2"} <= set(f) for f in found.values())
    assert (
        found["math500"]["by"]["level"] == {"0": [0.0, 6], "1": [0.0, 6]} and "level: 0 0.0% of 6" in output
    )
    records = rows(folder / "eval_samples.jsonl")
    assert (
        len(records) == 3 * (6 * 2 + 6)
        and len({(r["task"], r["problem"], r["sample"]) for r in records}) == 54
    )
    assert "no_answer_share" in found["math500"]


def test_an_interrupted_evaluation_goes_on(tiny, tmp_path, rows, monkeypatch):
    from commands import eval as command

    monkeypatch.setattr(command, "AT_ONCE", 4)  # two problems a chunk
    argv = ["--model", tiny, "--task_args", "wording=short", "--out", tmp_path, "--name", "x", *QUICK]
    assert run(*argv) == 0
    path = tmp_path / "eval-x" / "eval_samples.jsonl"
    figures = lambda: json.loads((tmp_path / "eval-x" / "eval.json").read_text()) | {"seconds": None}
    whole, known = path.read_bytes(), figures()
    lines = whole.splitlines(keepends=True)
    asked, collect = [], tinyr1.collect
    monkeypatch.setattr(tinyr1, "collect", lambda *a: asked.append(len(a[2])) or collect(*a))
    for torn, chunks in ((b"".join(lines[:7]) + lines[7][:9], 2), (b"".join(lines[:4]), 2), (whole, 0)):
        path.write_bytes(torn)
        asked.clear()
        assert run(*argv) == 0
        assert path.read_bytes() == whole and len(asked) == chunks
        assert figures() == known


def test_other_settings_or_weights_are_refused(tiny, tmp_path, capsys):
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(model)
    argv = ["--model", model, "--task_args", "wording=short", "--out", tmp_path, "--name", "x", *QUICK]
    assert run(*argv) == 0
    assert run(*argv, "--seed", 1) == 2 and "--seed changed" in capsys.readouterr().err
    (model / "model.safetensors").touch()
    assert run(*argv) == 0  # the same weights, copied or fetched anew
    with open(model / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"@")  # a norm's 1.0 becomes 4.0
    assert run(*argv) == 2 and "the weights changed" in capsys.readouterr().err
    assert run(*argv, "--overwrite") == 0
    task, argv = tmp_path / "own.py", [*argv[:2], "--out", tmp_path, "--name", "y", *QUICK]
    task.write_text(LENIENT)
    argv += ["--task", task, "--task_args", "wording=short"]
    assert run(*argv) == 0
    task.write_text(LENIENT.replace("1.0", "0.5"))
    assert run(*argv) == 2 and "the tasks' code or data changed" in capsys.readouterr().err
    for bad, message in (
        (["--data", "x"], "SET=FILE"),
        (["--data", "gsm8k=x.jsonl"], "gsm8k"),
        (["--task", "mth500"], "math500"),
        (["--task", "countdown:4"], "option=value"),
    ):
        assert run(*argv, "--overwrite", *bad) == 2 and message in capsys.readouterr().err


def test_a_run_in_training_is_evaluated_at_its_checkpoint(tiny, tmp_path, capsys):
    argv = [
        "mini",
        "--model",
        tiny,
        "--out",
        tmp_path,
        "--name",
        "r",
        "--steps",
        2,
        "--prompts",
        2,
        "--group",
        2,
    ]
    argv += ["--overlong_buffer", 4, "--probe_every", 0, *QUICK]
    assert tinyr1.main(["train", *map(str, argv)]) == 0
    final = evaluated(tmp_path / "r", tmp_path)
    for path in sorted((tmp_path / "r" / "final").glob("*")):
        path.unlink()
    (tmp_path / "r" / "final").rmdir()
    capsys.readouterr()
    assert evaluated(tmp_path / "r", tmp_path, "--overwrite") == final
    assert "still in training, at step 2" in capsys.readouterr().out
    (tmp_path / "r" / "checkpoint" / "state.pt").write_bytes(b"no")
    assert run(tmp_path / "r", "--overwrite") == 2 and "cannot be read" in capsys.readouterr().err


def evaluated(folder, out, *more):
    assert run(folder, *more) == 0
    return (out / f"eval-{folder.name}" / "eval_samples.jsonl").read_text()


LENIENT = """
from tasks.countdown import examples, question, OPTIONS

def reward(completion, example):
    return {"reward": 1.0, "correct": True}
"""


def test_stored_samples_are_graded_again(tmp_path, capsys, rows):
    example = {"nums": [3, 8, 5], "target": 16, "wording": "short", "reward": "binary"}
    texts = ["<answer>3+8+5</answer>", "<answer>3*8</answer>", "<answer>8+5+3</answer>", "none"]
    old = [
        {"task": "countdown", "problem": i // 2, "sample": i % 2, "example": example, "completion": text,
         "correct": i == 1, "tokens": 5 + i, "finished": True}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    path = tmp_path / "eval_samples.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in old))
    assert run("--rescore", path) == 0
    output = capsys.readouterr().out
    assert "3 of 4 verdicts changed" in output and "50.0%" in output
    new = rows(tmp_path / "eval_samples.rescored.jsonl")
    assert [r["correct"] for r in new] == [True, False, True, False] and new[3]["tokens"] == 8
    lenient = tmp_path / "lenient.py"
    lenient.write_text(LENIENT)
    assert run("--rescore", path, "--task", lenient) == 0 and "3 of 4" in capsys.readouterr().out
    found = json.loads((tmp_path / "eval_samples.rescored.json").read_text())["sets"]["countdown"]
    assert found["accuracy"] == 1 and found["problems"] == 2
    path.write_text(path.read_text() + json.dumps(old[0]) + "\n")
    assert run("--rescore", path) == 2 and "the same number of each" in capsys.readouterr().err
    path.write_text("{}\n")
    assert run("--rescore", path) == 2 and "eval_samples.jsonl" in capsys.readouterr().err


def test_a_responses_end_by_template(tiny):
    class Spy(Exception):
        pass

    def generate(*args, **given):
        raise Spy(given["stop"])

    real, tinyr1.rollout.generate = tinyr1.rollout.generate, generate
    try:
        model, tokenizer = models.load_model(tiny, torch.device("cpu"))
        for template, stop in [*tasks.STOPS.items(), ("none", ())]:
            cfg = tinyr1.Config(template=template, precision="fp32")
            with pytest.raises(Spy) as seen:
                tinyr1.collect(model, tokenizer, [tinyr1.Problem({}, "", [1])], 1, cfg, 0)
            assert seen.value.args[0] == stop
    finally:
        tinyr1.rollout.generate = real


def test_a_tokenizer_that_lacks_the_template_or_an_end_is_refused(tiny):
    model, tokenizer = models.load_model(tiny, torch.device("cpu"))
    models.check_tokenizer(model, tokenizer, "none")
    assert models.stop_ids(model, tokenizer, "none") == [tokenizer.eos_token_id]

    class Half:
        unk_token_id, eos_token_id, chat_template = 0, 1, None
        get_added_vocab = staticmethod(dict)
        decode = staticmethod(str)

        def __call__(self, text):
            return type("Ids", (), {"input_ids": [0 if c == "<" else 1 for c in text]})

    with pytest.raises(UserError, match="no tokens for some of the template"):
        models.check_tokenizer(model, Half(), "r1")
    Half.unk_token_id, Half.eos_token_id = None, 10**6
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="No response could end"):
        models.check_tokenizer(model, Half(), "r1")


def test_options_follow_the_template(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"problem": "1+1?", "answer": "2"}) + "\n")
    task = tasks.load("competition_math")
    tokenizer = lambda text, **_: type("Ids", (), {"input_ids": [1]})
    for template, given, expected in (
        ("r1", [], "answer"), ("qwen-math", [], "boxed"), ("r1", ["format=boxed"], "boxed"),
    ):  # fmt: skip
        cfg = tinyr1.Config(template=template, task_args=[f"data={data}", "test=all", *given])
        assert next(tinyr1.problems(task, "test", cfg, tokenizer)).example["format"] == expected


def test_find_knows_tasks_sets_and_files(tmp_path):
    assert tasks.find("countdown") == (tasks.load("countdown"), {})
    assert tasks.find("countdown34") == (tasks.load("countdown"), {"data": "countdown34"})
    assert tasks.find("aime24") == (tasks.load("competition_math"), {"data": "aime24"})
    with pytest.raises(tasks.TaskError, match="math500"):
        tasks.find("math-500")


def test_help_of_the_command():
    result = subprocess.run(
        [sys.executable, HERE / "tinyr1.py", "eval", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "--rescore" in result.stdout and "--greedy" in result.stdout
