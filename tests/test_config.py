"""The order of defaults, algorithm, preset and command line; help; what is refused or said at the start."""

import json
import re
import subprocess
from dataclasses import fields

import pytest
import torch

import tinyr1
from commands import compare_algos
from commands.eval import Eval
from plots.runs import OLD_NAMES, load_run
from runtime import config, presets
from runtime.presets import PRESETS
from runtime.runfolder import UserError


def parse(*argv):
    return tinyr1.parse([*argv])[0]


def test_a_typed_algorithm_brings_its_whole_row():
    assert parse("mini").kl == 0 and parse("mini").algo == "grpo"  # the preset's own
    for name, row in tinyr1.ALGORITHMS.items():
        for argv in (["mini", "--algo", name], ["mini", f"--algo={name}"], ["1.5b", "--algo", name]):
            cfg = parse(*argv)
            own = PRESETS[argv[0]] if name == "grpo" else {}  # a preset comes after its own algorithm
            assert {k: getattr(cfg, k) for k in row} == {k: own.get(k, row[k]) for k in row}
            assert cfg.algo == name and "kl" in row and cfg.task_args == PRESETS[argv[0]]["task_args"]
    assert parse("mini", "--algo", "ppo", "--kl", "0.5", "--gae_lambda=0.9").kl == 0.5
    assert parse("--algo", "rloo").adv == "loo" and parse().kl == 0.04


def test_another_task_leaves_the_presets_options_behind():
    for argv in (["--task", "multiplication"], ["--task=multiplication"]):
        assert parse("mini", *argv).task_args == []
    assert parse("mini", "--task", "countdown").task_args == PRESETS["mini"]["task_args"]
    assert parse("mini", "--task_args", "high=9", "wording=").task_args == [
        "numbers=3",
        "high=9",
        "reward=binary",
    ]


def test_a_control_has_no_other_signal():
    assert parse("mini").rewards == "task,overlong"
    assert parse("mini", "--rewards", "random").rewards == "random"


def test_typing_the_presets_own_algorithm_changes_nothing():
    for preset in PRESETS:
        assert parse(preset, "--algo", "grpo") == parse(preset) and parse(preset).name == preset
    assert parse("--algo", "grpo") == parse()


def test_a_cell_of_compare_algos_has_its_algorithms_whole_row():
    for name, row in tinyr1.ALGORITHMS.items():
        cfg = parse(*compare_algos.cell_command("runs", ["--lr", "1e-3"], name, "0"))
        assert {k: getattr(cfg, k) for k in row} == row and cfg.lr == 1e-3
    assert parse(*compare_algos.cell_command("runs", ["--kl", "0.5"], "grpo", "0")).kl == 0.5


# ---------------------------------------------------------------- help


def shown(capsys, monkeypatch, command, *argv):
    """{option: its default as --help shows it, "" if it does not}."""
    monkeypatch.setenv("COLUMNS", "1000")  # nothing is wrapped
    with pytest.raises(SystemExit) as end:
        tinyr1.main([command, *argv, "--help"])
    assert end.value.code == 0
    options = capsys.readouterr().out.split("\noptions:\n")[1]
    found = re.findall(r"^ +--(\w+)\b[^\n]*?(?:\n {20,}[^\n]*?)?(?:\(default: ([^\n]*)\))?$", options, re.M)
    return dict(found)


@pytest.mark.parametrize("preset", [[], *([name] for name in PRESETS)], ids=" ".join)
@pytest.mark.parametrize("name, command", [("train", tinyr1.Train), ("eval", Eval)])
def test_help_shows_what_the_run_would_get(capsys, monkeypatch, name, command, preset):
    cfg = tinyr1.parse(preset, command)[0]
    defaults = shown(capsys, monkeypatch, name, *preset)
    values = {f.name: getattr(cfg, f.name) for f in fields(command)}
    assert defaults == {name: "" if value in ("", []) else str(value) for name, value in values.items()}


def test_help_follows_what_is_typed(capsys, monkeypatch):
    assert shown(capsys, monkeypatch, "train")["kl"] == "0.04"
    assert shown(capsys, monkeypatch, "train", "mini")["lr"] == "0.0008"
    ppo = shown(capsys, monkeypatch, "train", "mini", "--algo", "ppo")
    assert (ppo["aux"], ppo["kl"], ppo["lr"]) == ("critic", "0.001", "0.0008")
    assert shown(capsys, monkeypatch, "train", "--model", "Qwen/Qwen2.5-0.5B")["lr"] == "1e-06"


def test_help_of_the_evaluation_of_a_run(capsys, monkeypatch, tmp_path):
    (tmp_path / "final").mkdir()
    saved = {"task": "multiplication", "max_new_tokens": 77, "kl": 0.0}
    (tmp_path / "config.json").write_text(json.dumps({"config": saved}))
    defaults = shown(capsys, monkeypatch, "eval", str(tmp_path))
    assert (defaults["task"], defaults["max_new_tokens"]) == ("multiplication", "77")


def test_help_has_the_groups_as_headings(capsys):
    for name, command in (("train", tinyr1.Train), ("eval", Eval)):
        with pytest.raises(SystemExit):
            tinyr1.main([name, "--help"])
        output = capsys.readouterr().out
        assert output.startswith(f"usage: tinyr1.py {name} [preset] [--option value ...]\n")
        headings = [group._argument_group_name for group in command.__bases__]
        assert re.findall(r"^(\w.*):$", output, re.M)[2:] == headings
        assert "(default: None)" not in output


def test_one_table_of_presets(capsys):
    assert list(presets.ABOUT) == list(PRESETS)
    assert presets.markdown_table() in (tinyr1.HERE / "README.md").read_text()
    assert tinyr1.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert presets.text_table() in output
    shell = subprocess.run(["bash", tinyr1.HERE / "run.sh", "--help"], capture_output=True, text=True)
    assert (shell.returncode, shell.stdout) == (0, output)


def test_a_command_takes_its_groups_only():
    names = {f.name for f in fields(Eval)}
    assert "kl" not in names and "lr" not in names and {"model", "rescore", "seed"} <= names
    assert list(config.defaults_of(tinyr1.Train))[:2] == ["model", "template"]
    assert set(config.defaults_of(tinyr1.Train)) == {f.name for f in fields(tinyr1.Train)}


def test_auto_is_resolved_in_a_copy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = parse("mini")
    found = config.resolve(cfg, {"precision": "bf16"})
    assert (found.device, found.precision) == ("cpu", "bf16")
    assert (cfg.device, cfg.precision) == ("auto", "auto")
    assert config.resolve(parse("mini", "--precision", "fp32"), {"precision": "bf16"}).precision == "fp32"


# ---------------------------------------------------------------- what is refused


IDLE = [  # what does nothing with one update per rollout and no KL, and what makes it act
    ("--clip_low 0.1", "--epochs 2"),
    ("--clip_low 0", "--minibatches 2"),
    ("--clip_high 0.28", "--minibatches 4"),
    ("--clip_dual 3", "--epochs 2"),
    ("--ratio sequence", "--epochs 2"),
    ("--ratio sequence", "--tis_cap 2"),
    ("--surrogate cispo", "--epochs 3"),
    ("--algo ppo --value_clip 0.5", "--epochs 2"),
    ("--kl_estimator k1", "--kl 0.1"),
    ("--kl_in reward", "--kl 0.1"),
    ("--kl_target 3", "--kl 0.1"),
    ("--gamma 0", "--adv return"),
    ("--gae_lambda 0", "--algo ppo"),
    ("--critic head", "--algo ppo"),
    ("--prm_beta 0.1", "--algo prime"),
    ("--critic_lr 1e-4", "--algo ppo"),
    ("--critic_warmup 3", "--algo ppo"),
    ("--max_resamples 2", "--filter_groups True"),
    ("--probe_every 0 --probe_problems 9", "--probe_every 5"),
    ("--probe_every 0 --stop_accuracy 0.5", "--probe_every 5"),
]


@pytest.mark.parametrize("idle, cure", IDLE)
def test_an_idle_option_is_refused(idle, cure):
    with pytest.raises(UserError, match="does nothing here: it needs"):
        parse("mini", *idle.split())
    parse("mini", *idle.split(), *cure.split())


def test_every_idle_option_is_tested_and_an_algorithms_own_row_is_no_request():
    words = " ".join(idle for idle, _ in IDLE)
    assert all(
        f"--{name} " in words
        for group in tinyr1.Train.__bases__
        for names in group.IDLE
        for name in names.split()
    )
    for name in tinyr1.ALGORITHMS:
        parse("mini", "--algo", name)
    parse(
        "mini", "--algo", "dapo", "--filter_groups", "False", "--max_resamples", "0"
    )  # to turn off is no request


@pytest.mark.parametrize("old, new", OLD_NAMES.items())
def test_an_old_name_gives_the_new_one(old, new):
    for argv in ([f"--{old}", "1"], ["mini", f"--{old}=1"]):
        with pytest.raises(UserError, match=f"--{old} has another name now: write --{new}"):
            parse(*argv)
    assert hasattr(parse("mini"), new) and not hasattr(parse("mini"), old)


def test_the_config_of_a_run_with_old_names_is_read(tmp_path):
    (tmp_path / "final").mkdir()
    saved = {"task": "multiplication", "lam": 0.5, "band_high": 0.75, "weight": "token"}
    content = {"config": saved, "differences": {"lam": 0.5}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    read = config.read_settings(tmp_path)
    assert (read["gae_lambda"], read["max_pass_rate"], read["loss_norm"]) == (0.5, 0.75, "token")
    run = load_run(tmp_path)
    assert run.config["loss_norm"] == "token" and run.differences == {"gae_lambda": 0.5}


def test_eval_refuses_options_of_training():
    with pytest.raises(UserError, match="--kl is an option of training, which eval does not read"):
        tinyr1.parse(["mini", "--kl", "0.1"], Eval)


def test_a_preset_for_a_gpu_says_at_once_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(config, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(tinyr1, "train", lambda cfg, preset: pytest.fail("it trains"))
    for command in ("train", "eval"):
        assert tinyr1.main([command, "0.5b"]) == 2
        error = capsys.readouterr().err
        assert "22 GB" in error and "--device cpu" in error and error.count("\n") == 1
        assert "the model Qwen/Qwen2.5-0.5B and the dataset Jiayi-Pan/Countdown-Tasks-3to4" in error
    assert tinyr1.main(["compare_algos", "3b", "--token_budget", "100", "--out", str(tmp_path)]) == 2
    assert "78 GB" in capsys.readouterr().err
    (tmp_path / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "1").mkdir(parents=True)
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    assert tinyr1.main(["train", "0.5b", "--task_args", f"data={rows}"]) == 2
    assert "Not on this machine" not in capsys.readouterr().err


def test_a_preset_for_a_gpu_runs_where_it_may(monkeypatch, capsys, tiny):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = []
    monkeypatch.setattr(tinyr1, "train", lambda cfg, preset: ran.append(cfg.device) or {"steps": 1})
    assert tinyr1.main(["train", "0.5b", "--device", "cpu"]) == 0
    assert tinyr1.main(["train", "0.5b", "--model", tiny]) == 0  # a small model needs none of it
    assert tinyr1.main(["train", "mini"]) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (24e9, 24e9))
    assert tinyr1.main(["train", "0.5b"]) == 0 and "estimated" not in capsys.readouterr().out
    assert tinyr1.main(["train", "1.5b"]) == 0 and "44 GB of GPU memory, and 24 GB" in capsys.readouterr().out
    assert ran == ["cpu", "auto", "auto", "auto", "auto"]


# ---------------------------------------------------------------- the learning rate of another model


def test_the_miniatures_learning_rate_is_the_miniatures(monkeypatch, capsys, tiny):
    monkeypatch.setattr(tinyr1, "train", lambda cfg, preset: {"steps": 1})

    def rate(*argv):
        assert tinyr1.main(["train", *argv]) == 0
        return parse(*argv).lr, "No --lr was given" in capsys.readouterr().out

    qwen = ["--model", "Qwen/Qwen2.5-0.5B"]
    assert rate(*qwen) == rate("mini", *qwen) == rate("mini-dip", *qwen) == (1e-6, True)
    assert rate(*qwen, "--lr", "3e-5") == rate("mini", *qwen, "--lr=3e-5") == (3e-5, False)
    assert rate() == rate("--model", tiny) == rate("--model", "minibase") == (2e-4, False)
    assert rate("mini") == rate("mini", "--model", tiny) == (8e-4, False)
    assert rate("smollm2", "--model", "runs/smollm2-base") == (1e-5, False)


# ---------------------------------------------------------------- what is said at the start


def test_a_run_prints_its_settings(tiny, bandit, tmp_path, capsys):
    argv = ["--model", tiny, "--task", bandit, "--task_args", "a=1", "--out", str(tmp_path), "--steps", "1"]
    argv += [
        "--prompts",
        "2",
        "--group",
        "4",
        "--max_new_tokens",
        "3",
        "--algo",
        "dapo",
        "--max_resamples",
        "1",
    ]
    argv += ["--overlong_buffer", "2", "--lr", "5e-3", "--eval_samples", "1", "--device", "cpu"]
    assert (
        tinyr1.main(["train", *argv, "--precision", "fp32", *"--clip_high 0.2 --minibatches 2".split()]) == 0
    )
    told = capsys.readouterr().out.splitlines()[:3]
    assert told == [
        f"model {tiny} | task {bandit} a=1 | template none",
        "algorithm dapo with clip_high=0.2 minibatches=2 max_resamples=1 overlong_buffer=2 | "
        "lr 0.005 constant",
        "1 steps of 2 prompts x 4 samples of at most 3 tokens | seed 0 | cpu, fp32",
    ]


def test_what_differs_from_the_algorithms_row_is_named():
    told = config.describe(parse("mini", "--token_budget", "500", "--rewards", "random"), tinyr1.ALGORITHMS)
    assert "algorithm grpo with kl=0.0 rewards=random | lr 0.0008 cosine" in told
    assert "500 sampled tokens" in told and told.count("\n") == 2
    assert "algorithm gspo |" in config.describe(parse("--algo", "gspo"), tinyr1.ALGORITHMS)
