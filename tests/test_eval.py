"""Evaluation: figures by hand, many sets, resuming, grading stored samples again, a response's end."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks
import tinyr1
from commands import eval as command
from plots import summary
from runtime import models, runfolder
from runtime.metrics import evaluation, majority, pass_at_k
from runtime.problems import Problems
from runtime.runfolder import UserError, find_checkpoints

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


def test_the_interval_has_a_width_at_the_ends():
    for k in (1, 4):
        low, high = evaluation([record(False, None, 2)] * 10 * k, k)["accuracy_ci"]
        assert low == 0 and high == pytest.approx(0.2775, abs=1e-4)  # of ten problems, whatever k
        low, high = evaluation([record(True, "1", 2)] * 10 * k, k)["accuracy_ci"]
        assert low == pytest.approx(1 - 0.2775, abs=1e-4) and high == 1
    low, high = evaluation([record(True, "1", 2), record(False, "2", 2)] * 10, 2)["accuracy_ci"]
    assert low == pytest.approx(0.2366, abs=1e-4) and high == pytest.approx(0.7634, abs=1e-4)


def without_answer(correct, completion):
    found = record(correct, None, 2, completion=completion)
    del found["answer"]
    return found


def test_a_vote_takes_the_answers_from_the_texts():
    texts = ["<answer>1</answer>", "so \\boxed{1}", "\\boxed{2}", "none"]
    records = [without_answer(correct, text) for correct, text in zip((True, True, False, False), texts)]
    m = evaluation(records, 4)
    assert m["cons@4"] == 1 and m["pass@1"] == 0.5 and m["no_answer_share"] == 0.25
    m = evaluation(records, 1)
    assert m["cons@1"] == m["pass@1"] == 0.5


@pytest.mark.parametrize(
    "records",
    [
        [without_answer(True, "4"), without_answer(False, "3")],  # none anywhere
        [without_answer(False, "4"), without_answer(False, "3")],
        [without_answer(True, "4"), without_answer(False, "<answer>3</answer>")],  # not of the right one
    ],
)
def test_without_answers_there_is_no_vote(records):
    for k in (1, 2):
        m = evaluation(records, k)
        assert not {f"cons@{k}", "no_answer_share"} & set(m) and f"pass@{k}" in m


def test_an_answer_that_the_task_did_not_find_is_none():
    m = evaluation([record(False, None, 2)] * 2, 1)
    assert m["cons@1"] == m["pass@1"] == 0 and m["no_answer_share"] == 1


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
    monkeypatch.setattr(command, "AT_ONCE", 4)  # two problems a chunk
    argv = ["--model", tiny, "--task_args", "wording=short", "--out", tmp_path, "--name", "x", *QUICK]
    assert run(*argv) == 0
    path = tmp_path / "eval-x" / "eval_samples.jsonl"
    figures = lambda: json.loads((tmp_path / "eval-x" / "eval.json").read_text()) | {"seconds": None}
    whole, known = path.read_bytes(), figures()
    lines = whole.splitlines(keepends=True)
    asked, collect = [], tinyr1.sample
    monkeypatch.setattr(tinyr1, "sample", lambda *a: asked.append(len(a[2])) or collect(*a))
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
    find_checkpoints(tmp_path / "r")[-1].write_bytes(b"no")
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
    (tmp_path / "config.json").write_text("{")  # of no run
    path.write_text("{}\n")
    assert run("--rescore", path) == 2 and "eval_samples.jsonl" in capsys.readouterr().err


def test_jsonl_that_ends_in_an_empty_line_or_holds_a_line_separator(tmp_path, capsys, rows):
    example = {"nums": [3, 8, 5], "target": 16}
    text = "\u2028\x85<answer>3+8+5</answer>"
    old = {"task": "countdown", "problem": 0, "example": example, "prompt": "p", "completion": text,
           "correct": False, "tokens": 5, "finished": True, "split": "test", "step": 0}  # fmt: skip
    path = tmp_path / "eval_samples.jsonl"
    path.write_text(json.dumps(old, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert run("--rescore", path) == 0 and "1 of 1 verdicts changed" in capsys.readouterr().out
    (graded,) = rows(tmp_path / "eval_samples.rescored.jsonl")
    assert graded["completion"] == text and graded["correct"]
    a_run = object.__new__(runfolder.Run)
    a_run.path = tmp_path
    assert a_run.rows("eval_samples.jsonl") == [old] and a_run.rows("missing.jsonl") == []
    path.rename(tmp_path / "samples.jsonl")
    (tmp_path / "summary.json").write_text(json.dumps({"base": {}, "trained": {}, "steps": 0}))
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "environment": {}}))
    summary.show(tmp_path)
    assert "base: wrong" in capsys.readouterr().out


def test_a_responses_end_by_template(tiny):
    class Spy(Exception):
        pass

    def generate(*args, **given):
        raise Spy(given["stop"])

    real, tinyr1.generate = tinyr1.generate, generate
    try:
        model, tokenizer = models.load_model(tiny, torch.device("cpu"))
        for template, stop in [*tasks.STOPS.items(), ("none", ())]:
            cfg = tinyr1.Train(template=template, precision="fp32")
            with pytest.raises(Spy) as seen:
                tinyr1.sample(model, tokenizer, [tinyr1.Problem({}, "", [1])], 1, cfg, 0)
            assert seen.value.args[0] == stop
    finally:
        tinyr1.generate = real


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
        cfg = tinyr1.Train(template=template, task_args=[f"data={data}", "test=all", *given])
        assert next(Problems(task, "test", cfg, tokenizer)).example["format"] == expected


OPTIONS = ["numbers=3", "high=13", "wording=short", "reward=binary"]


def options_of(*argv):
    """{set: its task options} of an evaluation's command line."""
    cfg, _ = tinyr1.parse(list(argv), command.Eval)
    return {name: own.task_args for name, (_, own) in command.sets(cfg).items()}


@pytest.fixture
def mini_run(tmp_path, tiny):
    """Folder of a run of preset mini, with another model instead of the trained one."""
    folder = tmp_path / "mini"
    cfg, _ = tinyr1.parse(["mini"])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": asdict(cfg)}))
    (folder / "final").symlink_to(tiny)
    return str(folder)


def test_rows_of_ones_own_replace_the_ranges_of_a_preset(mini_run, tmp_path, tiny, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"nums": [n + 1, 2], "target": n + 3}) + "\n" for n in range(20)))
    mine = ["wording=short", "reward=binary", f"data={data}"]
    typed = ["--task", "countdown", "--task_args", f"data={data}"]
    assert options_of(mini_run, *typed) == {"countdown": mine}
    assert options_of("mini", *typed) == options_of(*typed) == {"countdown": mine}
    assert tinyr1.parse(["mini", *typed])[0].task_args == mine
    spec = f"countdown:data={data}"
    assert options_of(mini_run, "--task", spec) == {spec: mine}
    assert options_of(mini_run, "--data", f"countdown={data}") == {"countdown": [*mine, "test=all"]}
    assert options_of(mini_run, "--task_args", "data=", "high=9") == {
        "countdown": ["numbers=3", "high=9", "wording=short", "reward=binary"]
    }
    assert run(mini_run, *typed, *QUICK, "--out", tmp_path) == 0
    assert run(mini_run, *typed, "high=9", *QUICK, "--out", tmp_path) == 2
    assert "leave out high" in capsys.readouterr().err
    assert options_of("mini-multiply", "--task_args", "low=2", "high=12") == {
        "multiplication": ["wording=short", "reward=binary", "low=2", "high=12"]
    }


def test_the_miniature_is_asked_in_the_wording_that_it_has_read(mini_run, tmp_path, tiny):
    products = ["digits=2x2", "wording=short", "reward=binary"]
    assert options_of() == {"countdown": OPTIONS} == options_of(mini_run)
    assert options_of("--task_args", "high=9") == {"countdown": [OPTIONS[0], "high=9", *OPTIONS[2:]]}
    two = "countdown:numbers=4,multiplication"
    expected = {"countdown:numbers=4": ["numbers=4", *OPTIONS[1:]], "multiplication": products}
    assert options_of("--task", two) == options_of(mini_run, "--task", two) == expected
    known = ["wording=short", "reward=binary", "data=countdown34"]
    assert options_of(mini_run, "--task", "countdown34") == {"countdown34": known}
    assert options_of("--model", tiny, "--task", "countdown,multiplication") == {
        "countdown": [],
        "multiplication": [],
    }
    assert options_of("--task", "math500") == {"math500": ["data=math500"]}
    config = Path(mini_run, "config.json")
    saved = json.loads(config.read_text())
    saved["config"]["task_args"] = ["wording=short"]  # a run's own task has its own options alone
    config.write_text(json.dumps(saved))
    assert options_of(mini_run) == {"countdown": ["wording=short"]}


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
