"""speedrun: its rules, its clock, and that a run stops at the accuracy that it is to reach."""

import json

import pytest
from test_train import QUICK, train

import tinyr1
from commands import speedrun
from plots.runs import load_run
from runtime.runfolder import UserError


def history(tmp_path, rows):
    (tmp_path / "config.json").write_text(json.dumps({"config": {}}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_run(tmp_path)


def test_the_clock_counts_training_up_to_the_evaluation_that_reaches_it(tmp_path):
    rows = [{"step": 0, "eval/accuracy": 0.9}]
    rows += [{"step": step, "time/step": 2.0, "reward": 0.5} for step in (1, 2, 3, 4, 5)]
    rows += [{"step": 2, "probe/accuracy": 0.79}, {"step": 4, "probe/accuracy": 0.8}]
    assert speedrun.reached(history(tmp_path, rows)) == (4, 8.0, 0.8)
    assert speedrun.reached(history(tmp_path, rows[:-1])) is None


def test_the_report_has_the_median_and_the_row_for_the_table():
    results = {"0": (20, 31.0, 0.81), "1": (22, 35.5, 0.8), "2": (18, 30.0, 0.82)}
    text = speedrun.report(results, ["--group", "8"])
    assert "median: 31.0 s to 80%" in text
    assert "| 31.0 (30.0–35.5) | `python tinyr1.py speedrun --group 8` |" in text
    assert "No result" in speedrun.report(results | {"3": None}, [])


@pytest.mark.parametrize(
    "options",
    ["--task multiplication", "--task_args high=5", "--eval_problems 64", "--temperature 0.5"],
)
def test_what_a_speedrun_may_not_change(options):
    with pytest.raises(UserError, match="docs/speedrun.md"):
        speedrun.command_of(options.split(), "0", "runs")


def test_a_base_must_not_have_read_more_searches(tmp_path, tiny):
    with pytest.raises(UserError, match="no record.json"):
        speedrun.command_of(["--model", tiny], "0", "runs")
    corpus = {"search_share": 0.3, "code_share": 0.0, "give_up": 0.4}
    record = tmp_path / "record.json"
    for change, wrong in (({"search_share": 0.5}, "search_share"), ({"give_up": 0.1}, "give_up")):
        record.write_text(json.dumps({"corpus": corpus | change}))
        with pytest.raises(UserError, match=wrong):
            speedrun.check_base(str(tmp_path))
    record.write_text(json.dumps({"corpus": corpus | {"search_share": 0.1, "give_up": 0.9}}))
    speedrun.check_base(str(tmp_path))
    argv = speedrun.command_of(["--lr", "1e-3", "--group", "8"], "7", "runs")
    cfg = tinyr1.parse(argv)[0]
    assert (cfg.lr, cfg.group, cfg.seed, cfg.stop_accuracy, cfg.probe_every) == (1e-3, 8, 7, 0.8, 2)


def test_a_run_stops_at_the_accuracy_that_it_is_to_reach(tiny, bandit, tmp_path):
    argv = ["--model", tiny, "--task", bandit, "--out", tmp_path, "--name", "run", *QUICK, "--lr", "3e-3"]
    argv += ["--prompts", "8", "--group", "32", "--max_new_tokens", "4", "--temperature", "1"]
    argv += ["--probe_every", "2", "--steps", "100", "--stop_accuracy", "0.5"]
    assert train(*argv) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    probes = [row["probe/accuracy"] for row in rows if "probe/accuracy" in row]
    assert probes[-1] >= 0.5 and all(value < 0.5 for value in probes[:-1])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2 * len(probes) < 100


def test_an_accuracy_to_stop_at_needs_evaluations():
    with pytest.raises(UserError, match="--stop_accuracy 0.5 does nothing here"):
        tinyr1.parse(["mini", "--probe_every", "0", "--stop_accuracy", "0.5"])
