"""The first and the last minute of a run: the export, the folder's owner, what changed since it began."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import QUICK, same_weights, steps, train
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import tinyr1
from runtime import config, digests, runfolder
from runtime.runfolder import find_checkpoints, read_checkpoint

INCONSISTENT = {"eos_token_id": 0, "do_sample": False, "temperature": 0.9}  # Vicuna's and Llama-2-chat's was
SAME = """
import itertools
from helper import REWARD

def examples(split):
    return itertools.repeat({"n": 1}, 2 if split == "test" else 10**6)

def question(example):
    return "What is 2?"

def reward(completion, example):
    return {"reward": REWARD, "correct": False}
"""


@pytest.fixture
def base(tiny, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny, tmp_path / "base")


@pytest.fixture
def same(tmp_path, monkeypatch):
    """A task that rewards all alike, by a number in another file beside it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    (tmp_path / "helper.py").write_text("REWARD = 0.1\n")
    (tmp_path / "same.py").write_text(SAME)
    return tmp_path / "same.py"


def one_paragraph(capsys) -> str:
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tinyr1: ")]
    assert len(error) == 1
    return error[0]


def interrupted(monkeypatch, *argv, after=2) -> None:
    """Train up to a Ctrl-C in an update."""
    real, calls = tinyr1.update, []

    def update(*args):
        calls.append(0)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tinyr1, "update", update)
        assert train(*argv) == 130


# ---------------------------------------------------------------- the export


def test_an_inconsistent_generation_config_is_mended_at_the_start(base, tmp_path, capsys):
    (base / "generation_config.json").write_text(json.dumps(INCONSISTENT))
    argv = ["mini", "--model", base, "--out", tmp_path, "--name", "r", "--steps", 1, *QUICK]
    assert train(*argv) == 0
    output = capsys.readouterr().out
    assert output.count("contradicts itself") == 1 and output.index("itself") < output.index("evaluating the")
    saved = GenerationConfig.from_pretrained(tmp_path / "r" / "final")
    assert saved.eos_token_id == 0 and saved.temperature in (None, 1.0)
    AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "final")


def test_a_model_that_cannot_be_saved_is_refused_before_the_first_step(tiny, tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise TypeError("Object of type dtype\nis not JSON serializable")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", fails)
    assert train("mini", "--model", tiny, "--out", tmp_path, "--name", "r", *QUICK) == 2
    assert "could not be saved after training (TypeError: Object of type dtype is" in one_paragraph(capsys)
    assert not (tmp_path / "r").exists()


def test_a_failed_export_loses_nothing(tiny, tmp_path, capsys, monkeypatch):
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--steps", 2, "--precision", "fp32", *QUICK]
    run, real, updates = tmp_path / "r", PreTrainedModel.save_pretrained, []
    assert train(*argv, "--name", "whole") == 0

    def fails(self, folder, **options):
        real(self, folder, state_dict={})
        if "state_dict" not in options:
            raise RuntimeError("The weights\nshare memory")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", fails)
        assert train(*argv, "--name", "r") == 2
    assert "RuntimeError: The weights share memory. The last checkpoint is whole" in one_paragraph(capsys)
    assert not [path.name for path in run.iterdir() if "final" in path.name]
    evaluate = ["eval", str(run), "--out", str(tmp_path), "--eval_problems", "2", "--eval_samples", "2"]
    assert tinyr1.main(evaluate) == 0 and "at step 2" in capsys.readouterr().out
    assert tinyr1.main(["play", str(run), "--once", "0", "--seed", "0"]) == 0
    update = tinyr1.update
    monkeypatch.setattr(tinyr1, "update", lambda *args: updates.append(0) or update(*args))
    assert train(*argv, "--name", "r") == 0
    assert not updates and same_weights(tmp_path / "whole", run)


def test_an_old_final_survives_a_failed_export(tiny, tmp_path, monkeypatch):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    folder = tmp_path / "final"
    runfolder.write_model(model, tokenizer, folder)
    before = digests.digest(digests.model_files(str(folder)))

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", fails)
    with pytest.raises(OSError):
        runfolder.write_model(model, tokenizer, folder)
    assert digests.digest(digests.model_files(str(folder))) == before and [*tmp_path.iterdir()] == [folder]
    monkeypatch.undo()
    torch.nn.init.zeros_(model.lm_head.weight)
    runfolder.write_model(model, tokenizer, folder)
    assert digests.digest(digests.model_files(str(folder))) != before and [*tmp_path.iterdir()] == [folder]


# ---------------------------------------------------------------- the folder's owner

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("1234")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    """Another process that has locked the folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / runfolder.LOCK)], **pipes)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.skipif(runfolder.fcntl is None, reason="there is no flock")
def test_a_folder_in_use_is_refused_until_its_owner_dies(tiny, tmp_path, capsys, monkeypatch):
    run = tmp_path / "r"
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "r", "--steps", 4, "--save_every", 1]
    interrupted(monkeypatch, *argv, *QUICK)
    evaluate = ["eval", str(run), "--out", str(tmp_path), "--name", "r", "--eval_problems", "2"]
    assert tinyr1.main(evaluate) == 0
    capsys.readouterr()
    contents = lambda: {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    owner, other = holder(run), holder(tmp_path / "eval-r")
    try:
        before = contents()
        for more in ([], ["--overwrite"]):
            assert train(*argv, *QUICK, *more) == 2
            assert "in use by another process (1234)" in one_paragraph(capsys)
        assert tinyr1.main([*evaluate, "--overwrite"]) == 2 and "in use" in one_paragraph(capsys)
        assert contents() == before
    finally:
        owner.send_signal(signal.SIGKILL)
        other.send_signal(signal.SIGKILL)
        owner.wait()
        other.wait()
    assert train(*argv, *QUICK) == 0 and tinyr1.main([*evaluate, "--overwrite"]) == 0
    assert not runfolder.locks and (run / runfolder.LOCK).read_text() == f"{os.getpid()}\n"


def test_two_starts_of_a_new_run_at_once(tiny, tmp_path, capsys, monkeypatch):
    """The one that comes second finds the first one's run, or its lock, when it begins."""
    cfg = tinyr1.parse(["mini", "--model", tiny, "--out", str(tmp_path), "--name", "r", *QUICK])[0]
    late = runfolder.Run(cfg)
    assert train("mini", "--model", tiny, "--out", tmp_path, "--name", "r", "--steps", 1, *QUICK) == 0
    with pytest.raises(runfolder.UserError, match="Another process has begun"):
        late.begin(cfg, {})
    runfolder.release_locks()
    assert (tmp_path / "r" / "summary.json").exists()


def test_without_locks_a_run_says_so_and_starts(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runfolder, "fcntl", None)
    assert train("mini", "--model", tiny, "--out", tmp_path, "--name", "r", "--steps", 1, *QUICK) == 0
    assert "cannot be locked (this system has no flock)" in capsys.readouterr().out


def test_overwrite_does_not_delete_what_the_new_run_needs(tiny, bandit, tmp_path, capsys):
    run = tmp_path / "r"
    argv = ["mini", "--out", tmp_path, "--name", "r", "--steps", 1, "--overwrite", *QUICK]
    assert train(*argv, "--model", tiny) == 0
    (tmp_path / "link").symlink_to(run / "final")
    (tmp_path / "parts").mkdir()
    for path in (run / "final").iterdir():
        (tmp_path / "parts" / path.name).symlink_to(path)
    (tmp_path / "also").symlink_to(tmp_path)
    task = shutil.copy(bandit, run)
    (run / "rows.jsonl").write_text('{"nums": [1, 2], "target": 3}\n')
    for needs in (
        ["--model", run / "final"],
        ["--model", tmp_path / "link"],
        ["--model", tmp_path / "parts"],
        ["--model", run / "final", "--out", tmp_path / "also"],
        ["--model", tiny, "--task", task],
        ["--model", tiny, "--task_args", f"data={run / 'rows.jsonl'}"],
    ):
        assert train(*argv, *needs) == 2
        assert "--overwrite would delete" in one_paragraph(capsys) and (run / "summary.json").exists()
    (run / "plots").mkdir()
    (run / "plots" / "mine").symlink_to(tmp_path / "parts")
    assert train(*argv, "--model", tiny) == 0  # which deletes the link alone
    assert (tmp_path / "parts").is_dir() and not (run / "plots").exists()


# ---------------------------------------------------------------- what changed since the run began


def test_a_base_model_that_changed_is_noticed(base, tmp_path, capsys, monkeypatch):
    argv = ["mini", "--model", base, "--out", tmp_path, "--steps", 4, "--save_every", 1]
    argv += ["--precision", "fp32", "--kl", 0.1, *QUICK]
    interrupted(monkeypatch, *argv, "--name", "r")
    interrupted(monkeypatch, *argv, "--name", "same")
    capsys.readouterr()
    weights, config = base / "model.safetensors", tmp_path / "r" / "config.json"
    weights.write_bytes(weights.read_bytes())  # with another date
    assert train(*argv, "--name", "same") == 0
    weights.write_bytes(weights.read_bytes()[:-1] + b"@")
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    assert train(*argv, "--name", "r") == 2
    error = one_paragraph(capsys)
    assert "the base model was " in error and "write null for model_digest" in error
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before
    content = json.loads(config.read_text())
    content["environment"]["model_digest"] = None  # what the error says
    config.write_text(json.dumps(content))
    assert train(*argv, "--name", "r") == 0
    content = json.loads(config.read_text())
    assert content["environment"]["model_digest"] and len(content["earlier_environments"]) == 1


def test_a_task_that_changed_is_noticed(tiny, same, tmp_path, capsys, monkeypatch):
    argv = ["--model", tiny, "--task", same, "--out", tmp_path, "--steps", 4, "--save_every", 1, *QUICK]
    interrupted(monkeypatch, *argv, "--name", "r")
    capsys.readouterr()
    known = json.loads((tmp_path / "r" / "config.json").read_text())["environment"]["task_digest"]
    (tmp_path / "helper.py").write_text("REWARD = 0.2\n")
    assert train(*argv, "--name", "r") == 2
    assert f"the task (its code, or a file that its options name) was {known}, is" in one_paragraph(capsys)
    (tmp_path / "helper.py").write_text("REWARD = 0.1\n")
    assert train(*argv, "--name", "r") == 0


def test_runs_of_before_the_digests_go_on(tiny, tmp_path, monkeypatch):
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "r", "--steps", 4, "--save_every", 1]
    interrupted(monkeypatch, *argv, *QUICK)
    config = tmp_path / "r" / "config.json"
    content = json.loads(config.read_text())
    for key in ("preset", "differences"):
        del content[key]
    for key in runfolder.DIGESTS:
        del content["environment"][key]
    config.write_text(json.dumps(content))
    assert train(*argv, *QUICK) == 0


def test_the_files_of_a_task(tmp_path):
    names = lambda task, *options: {path.name for path in digests.task_files(task, options)}
    assert {"competition_math.py", "algebra.py", "latex.py"} <= names("competition_math")
    assert "countdown.py" not in names("multiplication") and "arithmetic.py" in names("countdown")
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "own.py").write_text("from tasks.countdown import reward\nimport json, near, nowhere\n")
    (tmp_path / "near.py").write_text("from . import further\n")
    (tmp_path / "further.py").write_text("not Python\n")
    found = names(str(tmp_path / "own.py"), f"data={tmp_path / 'rows.jsonl'}", "numbers=3")
    assert {"own.py", "near.py", "further.py", "rows.jsonl", "countdown.py", "arithmetic.py"} <= found
    assert "make.py" not in found and "multiplication.py" not in found


def test_a_digest_reads_large_files_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "WHOLE", 1000)
    monkeypatch.setattr(digests, "PIECE", 10)
    path = tmp_path / "x.safetensors"
    found = set()
    for place in (None, 0, 5_000, 9_999):
        content = bytearray(10_000)
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        found.add(digests.digest([path]))
    path.write_bytes(bytes(10_001))
    found.add(digests.digest([path]))
    assert len(found) == 5 and digests.digest([]) is None


def test_uncommitted_changes_of_the_trainer_have_a_digest(tmp_path, monkeypatch):
    def git(*command):
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *command], check=True, capture_output=True)

    monkeypatch.setattr(runfolder, "HERE", tmp_path)
    assert runfolder.environment()["changes_digest"] is None  # not known: no repository
    (tmp_path / "plots").mkdir()
    for name in ("trainer.py", "plots/curves.py"):
        (tmp_path / name).write_text("a = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    clean = runfolder.environment()
    (tmp_path / "plots/curves.py").write_text("a = 2\n")
    assert clean["changes_digest"] == runfolder.environment()["changes_digest"] == ""
    (tmp_path / "trainer.py").write_bytes(b"a = '\xff'\n")
    edited = runfolder.environment()
    assert edited["changes_digest"] and runfolder.changed_digests(
        clean, edited | dict.fromkeys(("model_digest", "task_digest"))
    ) == ["changes_digest"]


def test_a_run_records_its_preset_and_what_differs(tiny, tmp_path, capsys):
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "r", "--steps", 1, *QUICK]
    assert train(*argv, "--lr", 1e-3, "--task_args", "reward=simplerl") == 0
    content = json.loads((tmp_path / "r" / "config.json").read_text())
    found, digest = content["differences"], content["environment"]["task_digest"]
    output = capsys.readouterr().out
    assert "preset mini, " in output and "lr 0.001" in output and f"task files {digest}" in output
    assert content["preset"] == "mini" and found["lr"] == 1e-3 and found["model"] == tiny
    assert "reward=simplerl" in found["task_args"] and not {"name", "out", "kl", "precision"} & set(found)


@pytest.mark.parametrize(
    "argv, expected",
    [
        ("mini", {}),
        ("mini-multiply --seed 3", {"seed": 3}),
        ("mini --algo ppo --lr 1e-3", {"algo": "ppo", "lr": 1e-3}),
        ("--algo dapo", {"algo": "dapo"}),
        ("smollm2 --algo dapo --overlong_buffer 8", {"algo": "dapo", "overlong_buffer": 8}),
        ("0.5b --lr 1e-6", {}),
    ],
)
def test_differences_are_from_the_preset_with_its_algorithms_row(argv, expected):
    cfg, preset = tinyr1.parse(argv.split())
    found = config.differences(cfg, tinyr1.PRESETS.get(preset, {}), tinyr1.ALGORITHMS)
    assert found == expected


# ---------------------------------------------------------------- numbers that are none


def test_weights_that_are_no_numbers_are_never_saved(tiny, base, tmp_path, capsys, monkeypatch):
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "r", "--steps", 9, "--save_every", 2]
    argv += ["--precision", "fp32", *QUICK]
    real, calls = tinyr1.update, []

    def spoils(learner, *rest):
        metrics = real(learner, *rest)
        calls.append(0)
        if len(calls) == 3:  # as an overflow in an optimizer step would
            next(learner.module.parameters()).data[0, 0] = float("inf")
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(tinyr1, "update", spoils)
        assert train(*argv) == 2
    error = one_paragraph(capsys)
    assert "NaN or infinite" in error and "good" not in error and "stays as it was" in error
    state = read_checkpoint(find_checkpoints(tmp_path / "r")[-1])
    assert state["step"] == 2 and all(value.isfinite().all() for value in state["model"].values())
    assert not (tmp_path / "r" / "final").exists()
    assert train(*argv) == 0

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(base)
    assert train("mini", "--model", base, "--out", tmp_path, "--name", "nan", *QUICK) == 2
    assert "has weights that are NaN or infinite" in one_paragraph(capsys)
    assert not (tmp_path / "nan").exists()


def test_a_huge_learning_rate_is_not_told_that_its_weights_are_good(tiny, tmp_path, capsys):
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "r", "--steps", 12, "--lr", 1e9]
    assert train(*argv, "--rewards", "random", *QUICK) == 2
    error = one_paragraph(capsys)
    assert "an earlier step may have spoiled them" in error and "good" not in error


def test_equal_rewards_leave_no_variance_to_explain(tiny, same, tmp_path, rows, monkeypatch):
    argv = ["--model", tiny, "--algo", "ppo", "--out", tmp_path, "--kl", 0, "--steps", 5, *QUICK]
    argv += ["--precision", "fp32", "--lr", 1e-2]
    assert train(*argv, "--task", same, "--name", "equal") == 0
    found = steps(tmp_path / "equal", rows)
    assert len(found) == 5 and not any("explained_variance" in row for row in found)
    assert train(*argv, "--rewards", "random", "--name", "random") == 0
    assert all(row["explained_variance"] > -10 for row in steps(tmp_path / "random", rows))
