"""The order of defaults, algorithm, preset and command line."""

import tinyr1


def parse(*argv, command="train"):
    return tinyr1.parse(command, [*argv])[0]


def test_a_typed_algorithm_brings_its_whole_row():
    assert parse("mini").kl == 0 and parse("mini").algo == "grpo"  # the preset's own
    for name, row in tinyr1.ALGORITHMS.items():
        for argv in (["mini", "--algo", name], ["mini", f"--algo={name}"], ["1.5b", "--algo", name]):
            cfg = parse(*argv)
            assert {k: getattr(cfg, k) for k in row} == row and cfg.algo == name
            assert "kl" in row and cfg.task_args == tinyr1.PRESETS[argv[0]]["task_args"]
    assert parse("mini", "--algo", "ppo", "--kl", "0.5", "--lam=0.9").kl == 0.5
    assert parse("--algo", "rloo").adv == "loo" and parse().kl == 0.04


def test_another_task_leaves_the_presets_options_behind():
    for argv in (["--task", "multiplication"], ["--task=multiplication"]):
        assert parse("mini", *argv).task_args == []
    assert parse("mini", "--task", "countdown").task_args == tinyr1.PRESETS["mini"]["task_args"]
    assert parse("mini", "--task_args", "high=9", "wording=").task_args == [
        "numbers=3",
        "high=9",
        "reward=binary",
    ]


def test_a_control_has_no_other_signal():
    assert parse("mini").overlong == "penalise"
    assert parse("mini", "--reward_mode", "random").overlong == "keep"
    assert parse("mini", "--reward_mode", "random", "--overlong", "penalise").overlong == "penalise"
