"""Training end to end on tiny models: it learns, resumes bit-exactly, and explains errors."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tinyr1
from runtime.runfolder import find_checkpoints, read_checkpoint
from tasks import countdown

HERE = Path(__file__).resolve().parent.parent
QUICK = (
    "--prompts 2 --group 4 --max_new_tokens 12 --overlong_buffer 4 --eval_problems 4 --eval_samples 2".split()
)
QUICK += ["--probe_every", "0"]


def train(*argv):
    return tinyr1.main(["train", *map(str, argv)])


def same_weights(a: Path, b: Path) -> bool:
    a, b = (AutoModelForCausalLM.from_pretrained(p / "final").state_dict() for p in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def last_checkpoint(run):
    return read_checkpoint(find_checkpoints(run)[-1])


def without_time(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


BANDIT_NEEDS = {  # one token a response has no room before the cap; an unlikely first success must count
    "dapo": "--rewards task --max_resamples 1",
    "prime": "--min_pass_rate 0.01 --max_pass_rate 1 --max_resamples 1",
}


@pytest.mark.parametrize("algo", tinyr1.ALGORITHMS)
def test_learns_a_bandit(tiny, bandit, tmp_path, rows, algo):
    options = "--prompts 4 --group 16 --max_new_tokens 1 --steps 40 --lr 5e-3 --kl 0 --probe_every 0 "
    options += BANDIT_NEEDS.get(algo, "")
    folder = tmp_path / "run"
    argv = ["--model", tiny, "--task", bandit, "--algo", algo, "--out", tmp_path, "--name", "run"]
    assert train(*argv, *options.split(), "--eval_samples", 64) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["base"]["accuracy"] < 0.2 and summary["trained"]["accuracy"] > 0.9
    assert summary["trained"]["said_digit"] > 0.9 and summary["steps"] == 40
    lo, hi = summary["trained"]["accuracy_ci"]
    assert lo <= summary["trained"]["accuracy"] <= hi
    steps = [row for row in rows(folder / "metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in steps] == list(range(1, 41)) and steps[-1]["reward"] > steps[0]["reward"]
    assert abs(steps[0]["rollout_kl"]) < 1e-2


def test_run_folder_and_refusals(tiny, tmp_path, rows, capsys):
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "a", "--steps", 2, *QUICK]
    assert train(*argv) == 0
    run, output = tmp_path / "a", capsys.readouterr().out
    for file in (
        "config.json",
        "metrics.jsonl",
        "samples.jsonl",
        "summary.json",
        "checkpoint/step_000002.pt",
        "final",
    ):
        assert (run / file).exists()
    assert "accuracy on held-out problems" in output and str(run) in output and "| trained: " in output
    assert f"Report: {run}/report.html" in output
    summary = json.loads((run / "summary.json").read_text())
    wanted = "accuracy accuracy_ci tokens attempts attempts_within_search search_share cut_share n".split()
    for side in ("base", "trained"):
        assert set(wanted) <= set(summary[side]) and summary[side]["n"] == 8
    assert {"total", "load", "sample", "score", "update"} <= set(summary["seconds"])
    config = json.loads((run / "config.json").read_text())
    assert set(config["config"]) == {f.name for f in fields(tinyr1.Train)} and config["config"]["seed"] == 0
    samples = rows(run / "samples.jsonl")
    held = [[s["example"] for s in samples if s["split"] == "test" and s["step"] == step] for step in (0, 2)]
    assert held[0] == held[1] and len(held[0]) == 4  # the same held-out prompts at every evaluation
    assert len([s for s in samples if s["split"] == "train" and s["step"] == 1]) == 8
    AutoTokenizer.from_pretrained(run / "final")

    before = (run / "metrics.jsonl").read_bytes()
    assert train(*argv) == 2 and "--overwrite" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
    assert tinyr1.main(["eval", str(run), "--out", str(tmp_path), "--eval_samples", "4", "--name", "a"]) == 0
    result = json.loads((tmp_path / "eval-a" / "eval.json").read_text())
    (figures,) = result["sets"].values()
    assert {"accuracy", "accuracy_ci", "pass@1", "pass@2", "pass@4", "cons@4"} <= set(figures)
    assert len(rows(tmp_path / "eval-a" / "eval_samples.jsonl")) == 16
    every = rows(run / "eval_samples.jsonl")
    assert [(r["step"], r["problem"], r["sample"]) for r in every] == [
        (step, problem, sample) for step in (0, 2) for problem in range(4) for sample in range(2)
    ]
    assert train(*argv, "--overwrite", "--steps", "1") == 0
    assert len([r for r in rows(run / "metrics.jsonl") if "reward" in r]) == 1
    assert train(*argv, "--name", "b", "--task_args", "nonsense=1") == 2  # found out late, and leaves nothing
    assert not (tmp_path / "b").exists()


def test_kill_and_resume_is_bit_exact(tiny, tmp_path, rows):
    """kill -9 in the middle of a run; the resumed run equals the uninterrupted one in weights and metrics."""
    argv = ["mini", "--model", tiny, "--out", str(tmp_path), "--steps", "12", "--save_every", "3", *QUICK]
    argv += ["--probe_every", "4", "--precision", "fp32"]
    assert train(*argv, "--name", "whole") == 0
    command = [sys.executable, str(HERE / "tinyr1.py"), "train", *argv, "--name", "killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, deadline = tmp_path / "killed" / "metrics.jsonl", time.time() + 300
    while not (metrics.exists() and metrics.read_text().count('"reward"') >= 5):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    with open(metrics, "a") as file:
        file.write('{"step": 7, "rewa')  # as if the machine had died while writing
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "resuming" in result.stdout and "report.html" in result.stdout
    made = ["report.html", "plots/curves.png", "plots/growth.pdf", "plots/aha.png", "plots/aha.pdf"]
    assert all((tmp_path / "killed" / file).stat().st_size > 10_000 for file in made)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    for file in ("metrics.jsonl", "samples.jsonl"):
        whole, killed = (without_time(rows(tmp_path / name / file)) for name in ("whole", "killed"))
        assert whole == killed


def test_ctrl_c_leaves_a_checkpoint(tiny, tmp_path):
    argv = ["mini", "--model", tiny, "--out", str(tmp_path), "--steps", "2000", "--name", "c", *QUICK]
    command = [sys.executable, str(HERE / "tinyr1.py"), "train", *argv, "--save_every", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "c" / "metrics.jsonl"
    while not (metrics.exists() and '"reward"' in metrics.read_text()):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 130 and "The same command resumes" in output
    state = last_checkpoint(tmp_path / "c")
    assert state["step"] == len([line for line in metrics.read_text().splitlines() if '"reward"' in line])


def test_same_seed_same_run_other_seed_other_run(tiny, tmp_path, rows):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert (
            train(
                "mini",
                "--model",
                tiny,
                "--out",
                tmp_path,
                "--name",
                name,
                "--seed",
                seed,
                "--steps",
                2,
                *QUICK,
            )
            == 0
        )
    a, b, c = (without_time(rows(tmp_path / name / "samples.jsonl")) for name in "abc")
    assert a == b != c and same_weights(tmp_path / "a", tmp_path / "b")


def test_kl_penalty_uses_the_reference(tiny, tmp_path, rows):
    argv = [
        "mini",
        "--model",
        tiny,
        "--out",
        tmp_path,
        "--name",
        "k",
        "--steps",
        3,
        "--kl",
        0.1,
        "--lr",
        0.01,
        *QUICK,
    ]
    assert train(*argv, "--minibatches", 2) == 0
    kl = [row["kl"] for row in rows(tmp_path / "k" / "metrics.jsonl") if "reward" in row]
    assert kl[0] == pytest.approx(0, abs=1e-3) and all(k >= 0 for k in kl)


BAD = {  # arguments -> what the message must contain
    "--task nonsense": "countdown",
    "--task ./nowhere.py": "nowhere.py",
    "--stpes 3": "--steps",
    "--steps 0": "1..",
    "--lr nan": "out of range",
    "--lr inf": "out of range",
    "--seed -1": "0..",
    "--temperature 0": "only eval",
    "--overlong_buffer 99": "must not exceed",
    "--steps many": "many",
    "--algo grop": "grpo",
    "--group 1": "at least 2",
    "--minibatches 3": "divide",
    "--adv gae": "no critic: give --aux critic",
    "--aux critic": "--adv gae",
    "--algo ppo --ratio sequence": "one advantage per response",
    "--value_clip 0.5": "--algo ppo",
    "--algo ppo --prm_beta 0.1": "--algo prime",
    "--critic_lr 1e-4": "--aux critic",
    "--gamma 0.9": "--adv return",
    "--kl_in reward": "--kl above 0",
    "--kl_target 3": "--kl above 0",
    "--max_resamples 2": "--filter_groups",
    "--min_pass_rate 0.9 --max_pass_rate 0.1": "must not exceed",
    "--clip_dual 0.5": "above 1",
    "--rewards nothing": "inverted",
    "--task_args nmubers=3": "numbers",
    "--task_args data=nowhere.jsonl numbers= high=": "nowhere.jsonl",
    "--task_args numbers": "name=value",
    "--model ./nowhere": "nowhere",
    "--out /proc/nowhere": "--out",
    "--template chat": "template",
    "--max_new_tokens 5000": "positions",
    "--device cuda": "--device cpu",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_clear_paragraph(tiny, tmp_path, capsys, arguments):
    if arguments == "--device cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "bad", *QUICK, *arguments.split()]
    assert train(*argv) == 2
    error = capsys.readouterr().err.strip()
    assert BAD[arguments] in error and error.startswith("tinyr1: ") and "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_mini_dip_says_how_its_base_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("mini-dip") == 2
    error = capsys.readouterr().err
    assert "make-base --out runs/dip-base --start minibase" in error and error.count("\n") == 1


def test_more_bad_input(tiny, tmp_path, capsys):
    def refused(message, *argv):
        assert train(*argv) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, error

    refused("Did you mean mini", "mimi")
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(bare)
    refused("tokenizer", "mini", "--model", bare, "--out", tmp_path)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"nums": [1, 2], "target": 3}\n{"nums": [1, 2], "tar')
    refused("Row 2", "--model", tiny, "--task_args", f"data={data}", "--out", tmp_path)

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
        "--save_every",
        1,
        *QUICK,
    ]
    assert train(*argv) == 0
    (tmp_path / "r" / "summary.json").unlink()  # as if it had not finished
    refused("--lr was 0.0008, now 0.1", *argv, "--lr", 0.1)
    wholes = {path: path.read_bytes() for path in find_checkpoints(tmp_path / "r")}
    for path, whole in wholes.items():
        path.write_bytes(whole[: len(whole) // 2])
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    refused("--overwrite", *argv)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before
    for path, whole in wholes.items():
        path.write_bytes(whole)
    assert train(*argv) == 0


def test_the_last_checkpoints_and_the_best_model_stay(tiny, tmp_path, capsys, rows):
    """A truncated checkpoint is replaced by the one before it; the run ends as an undisturbed one."""
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--rewards", "random", "--save_every", 2, *QUICK]
    argv += ["--steps", 7, "--probe_every", 3, "--precision", "fp32"]
    assert train(*argv, "--name", "r") == 0
    run, kept = tmp_path / "r", ["step_000006.pt", "step_000007.pt"]
    assert [path.name for path in find_checkpoints(run)] == kept
    probes = {row["step"]: row["probe/accuracy"] for row in rows(run / "metrics.jsonl") if "probe/n" in row}
    state = last_checkpoint(run)
    assert probes.keys() == {3, 6} and state["best_step"] == (6 if probes[6] > probes[3] else 3)
    assert AutoModelForCausalLM.from_pretrained(run / "best") and AutoTokenizer.from_pretrained(run / "best")
    expected, summary = (run / "metrics.jsonl").read_text(), (run / "summary.json")
    weights = (run / "final" / "model.safetensors").read_bytes()
    summary.unlink()
    newest = find_checkpoints(run)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    # options of storage may change
    assert train(*argv, "--name", "r", "--keep_checkpoints", 1, "--save_every", 9) == 0
    assert "resuming from the one before it" in capsys.readouterr().out
    assert without_time(map(json.loads, expected.splitlines())) == without_time(rows(run / "metrics.jsonl"))
    assert (run / "final" / "model.safetensors").read_bytes() == weights
    assert [path.name for path in find_checkpoints(run)] == ["step_000007.pt"]
    assert newest.with_suffix(".unreadable").exists()


def test_a_nan_stops_the_run_with_good_weights(tiny, tmp_path, capsys, monkeypatch):
    real = tinyr1.policy_loss

    def poisoned(*args):
        loss, sums = real(*args)
        return loss * float("nan"), sums

    monkeypatch.setattr(tinyr1, "policy_loss", poisoned)
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "n", "--steps", 9, "--kl", 0.1, *QUICK]
    assert train(*argv) == 2
    assert "3 steps in a row" in capsys.readouterr().err
    state = last_checkpoint(tmp_path / "n")
    start = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).state_dict()
    assert state["step"] == 3 and all(torch.equal(start[k], v) for k, v in state["model"].items())


def test_a_full_disk_keeps_the_old_checkpoint(tiny, tmp_path, capsys, monkeypatch):
    argv = [
        "mini",
        "--model",
        tiny,
        "--out",
        tmp_path,
        "--name",
        "f",
        "--steps",
        4,
        "--save_every",
        2,
        *QUICK,
    ]
    real = torch.save

    def full(state, file):
        real(state, file)
        if state["step"] == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert train(*argv) == 2
    assert "No space left" in capsys.readouterr().err
    assert last_checkpoint(tmp_path / "f")["step"] == 2
    monkeypatch.undo()
    assert train(*argv) == 0


def test_every_option_is_read():
    files = [*HERE.glob("*.py"), HERE / "tasks" / "rewards.py", *(HERE / "runtime").glob("*.py")]
    source = "".join(path.read_text() for path in files)
    unread = [
        f.name for f in fields(tinyr1.Train) if f"cfg.{f.name}" not in source and f'"{f.name}"' not in source
    ]
    assert not unread


def test_the_readmes_task_trains_in_the_mini_preset(tiny, tmp_path):
    source = re.search(r'```python\n(""".*?)```', (HERE / "README.md").read_text(), re.S)[1]
    (tmp_path / "my_task.py").write_text(source)
    argv = [
        "mini",
        "--model",
        tiny,
        "--task",
        tmp_path / "my_task.py",
        "--out",
        tmp_path,
        "--name",
        "m",
        "--steps",
        1,
    ]
    assert train(*argv, *QUICK) == 0
    summary = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert "answered" in summary["trained"] and summary["trained"]["attempts"] is None


def test_equal_rewards_are_a_dead_group_whatever_the_rounding(tiny, tmp_path, rows):
    """16 rewards of 0.1 have a mean that is not 0.1 in floating point; no gradient may come of that."""
    task = tmp_path / "same.py"
    task.write_text(
        "import itertools\n"
        "def examples(split): return itertools.repeat({'n': 1}, 1 if split == 'test' else 10**6)\n"
        "def question(e): return 'What is 2?'\n"
        "def reward(c, e): return {'reward': 0.1, 'correct': False}\n"
    )
    argv = ["--model", tiny, "--task", task, "--out", tmp_path, "--name", "s", "--steps", 2, *QUICK]
    assert train(*argv, "--group", 16, "--kl", 0) == 0
    steps = [r for r in rows(tmp_path / "s" / "metrics.jsonl") if "reward_std" in r]
    assert all(r["dead_groups"] == 1 and r["updated_tokens"] == 0 for r in steps)
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "s" / "final", dtype=torch.float32).state_dict()
    start = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).state_dict()
    assert all(torch.equal(start[k], final[k]) for k in start)


def steps(path, rows):
    return [row for row in rows(path / "metrics.jsonl") if "reward_std" in row]


RESUMED = {  # what a checkpoint holds beside the policy: critic, KL coefficient; prompts drawn; PRM
    "ppo": "--kl 0.1 --kl_target 0.01 --lr 0.01",
    "dapo": "--max_resamples 3 --group 2",
    "prime": "--max_resamples 3 --min_pass_rate 0.3 --max_pass_rate 0.7",
}


@pytest.mark.parametrize("algo", RESUMED)
def test_every_algorithm_resumes_bit_exactly(tiny, tmp_path, rows, algo, monkeypatch):
    argv = ["mini", "--model", tiny, "--algo", algo, "--out", tmp_path, "--rewards", "random"]
    argv += ["--steps", 5, "--save_every", 2, "--precision", "fp32", *QUICK, *RESUMED[algo].split()]
    assert train(*argv, "--name", "whole") == 0
    real, calls = tinyr1.update, []

    def stopped(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(0)
        return real(*args)

    monkeypatch.setattr(tinyr1, "update", stopped)
    assert train(*argv, "--name", "killed") == 130
    monkeypatch.setattr(tinyr1, "update", real)
    assert train(*argv, "--name", "killed") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    whole, killed = (without_time(rows(tmp_path / name / "metrics.jsonl")) for name in ("whole", "killed"))
    assert whole == killed
    done = steps(tmp_path / "whole", rows)
    if algo == "ppo":
        assert len({row["kl_coefficient"] for row in done}) > 1 and done[-1]["value_loss"] > 0
    else:
        state = last_checkpoint(tmp_path / "whole")
        assert sum(row["resampled"] for row in done) > 0
        assert state["drawn"] == 2 * 5 + sum(row["resampled"] for row in done)


def test_critic_warm_up_leaves_the_policy_alone(tiny, tmp_path, rows):
    argv = ["mini", "--model", tiny, "--algo", "ppo", "--out", tmp_path, "--name", "w", *QUICK]
    argv += ["--rewards", "random", "--steps", 3, "--save_every", 1, "--critic_warmup", 2]
    assert train(*argv) == 0
    done = steps(tmp_path / "w", rows)
    assert [row["updated_tokens"] > 0 for row in done] == [False, False, True]
    assert all(row["value_loss"] > 0 for row in done) and "explained_variance" in done[0]


def test_a_token_budget_ends_the_run(tiny, tmp_path, rows):
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "t", "--steps", 99, *QUICK]
    assert train(*argv, "--token_budget", 700) == 0
    done = steps(tmp_path / "t", rows)
    assert done[-1]["sampled_tokens"] >= 700 > done[-2]["sampled_tokens"]
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary["steps"] == len(done) < 99 and summary["peak_gb"] > 0
    assert done[-1]["lr"] < done[3]["lr"] / 2  # the cosine follows the budget


def test_a_control_is_named_everywhere(tiny, tmp_path, rows):
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--steps", 1, *QUICK, "--rewards", "random"]
    assert train(*argv) == 0
    (run,) = tmp_path.iterdir()
    assert "rewards_random" in run.name
    assert json.loads((run / "config.json").read_text())["config"]["rewards"] == "random"
    evaluation, step = rows(run / "metrics.jsonl")[:2]
    assert evaluation["eval/reward"] == 0 == step["task_reward"]  # a random model is never right
    assert step["reward"] > 0


def test_a_hacked_reward_and_the_truth_are_both_reported(tiny, tmp_path, rows, monkeypatch, capsys):
    """Every answer here is accepted by the holed verifier, and none is right."""
    reward, claims = countdown.reward, "want {}: yes <answer>0</answer>"
    monkeypatch.setattr(
        countdown, "reward", lambda _, example: reward(claims.format(example["target"]), example)
    )
    argv = ["mini", "--model", tiny, "--out", tmp_path, "--name", "hack", "--steps", 1, *QUICK]
    assert train(*argv, "--task_args", "verifier=holed") == 0
    evaluation, step, *_ = rows(tmp_path / "hack" / "metrics.jsonl")
    assert (step["reward"], step["accepted"], step["accuracy"]) == (1.0, 1.0, 0.0)
    assert (evaluation["eval/accepted"], evaluation["eval/accuracy"], evaluation["eval/pass@2"]) == (1, 0, 0)
    table = capsys.readouterr().out
    assert re.search(r"accepted by a holed verifier +100.0% +100.0%", table)
    assert re.search(r"accuracy on held-out problems +0.0%", table)


def test_the_algorithms_name_is_read_nowhere():
    for file in [HERE / "tinyr1.py", HERE / "critic.py", *HERE.glob("engine/*.py")]:
        assert "cfg.algo" not in file.read_text()
