"""The comparison of algorithms: cells are runs, finished ones stay, the report says what they say."""

import json

import pytest
from test_plots import ODD, make, quick, run_rows  # noqa: F401
from test_train import QUICK

import tinyr1
from commands import compare_algos, plot
from plots import algorithms, curves
from plots.runs import NotARun, load_run, load_runs


@pytest.fixture
def in_process(monkeypatch):
    """Cells run here, without plots of their own; the list of those that ran."""
    ran = []

    def run(jobs, at_once, out):
        ran.extend(job.name for job in jobs)
        return [job.name for job in jobs if tinyr1.main(job.argv)]

    monkeypatch.setattr(compare_algos, "make_all", run)
    return ran


def test_the_command_from_end_to_end(tiny, bandit, tmp_path, in_process, capsys):
    report = tmp_path / "reference" / "algorithms"
    argv = ["compare_algos", "--algos", "grpo,ppo,grpo:random", "--seeds", "0,1", "--model", tiny]
    argv += ["--task", bandit, "--out", str(tmp_path / "cells"), "--report", str(report)]
    argv += [*QUICK, "--max_new_tokens", "4", "--token_budget", "100", "--lr", "1e-3", "--probe_every", "1"]
    assert tinyr1.main(argv) == 0
    names = [f"{algo}-s{seed}" for seed in "01" for algo in ("grpo", "ppo", "grpo-random")]
    assert in_process == names and report.with_suffix(".pdf").stat().st_size > 10_000
    text = report.with_suffix(".md").read_text()
    assert text.count("| grpo | 2 |") == 1 and "| grpo:random | 2 |" in text and algorithms.NOTES in text
    assert "compare_algos --algos grpo,ppo,grpo:random" in text and "100 sampled tokens" in text
    config = json.loads((tmp_path / "cells" / "grpo-random-s1" / "config.json").read_text())["config"]
    assert config["rewards"] == "random" and config["seed"] == 1 and config["minibatches"] == 2

    in_process.clear()
    report.with_suffix(".md").write_text(f"old\n{algorithms.NOTES}\nMine.\n")
    (tmp_path / "cells" / "ppo-s0" / "summary.json").unlink()  # as if it had been stopped at its very end
    assert tinyr1.main(argv) == 0 and in_process == ["ppo-s0"]
    text = report.with_suffix(".md").read_text()
    assert text.endswith("Mine.\n") and "old" not in text and "| ppo | 2 |" in text
    in_process.clear()
    capsys.readouterr()
    assert tinyr1.main([*argv, "--lr", "2e-3"]) == 2 and not in_process
    assert "other settings (lr)" in capsys.readouterr().err
    assert tinyr1.main([*argv, "--algos", "grpo:nothing"]) == 2
    assert tinyr1.main(["compare_algos", "1.5b"]) == 2 and "--token_budget" in capsys.readouterr().err


def test_nothing_is_overwritten_that_was_not_asked_for(tiny, bandit, tmp_path, in_process, capsys, make):  # noqa: F811
    reference = tinyr1.HERE / "plots" / "reference" / "algorithms.md"
    before, cells = reference.read_bytes(), tmp_path / "cells"
    argv = ["compare_algos", "--algos", "grpo", "--seeds", "0", "--model", tiny, "--task", bandit]
    argv += ["--out", str(cells), *QUICK, "--max_new_tokens", "4", "--token_budget", "30"]
    assert tinyr1.main(argv) == 0
    assert reference.read_bytes() == before and (cells / "algorithms.md").exists()
    in_process.clear()
    (tmp_path / "bandit.py").write_text((tmp_path / "bandit.py").read_text() + "# edited\n")
    assert tinyr1.main(argv) == 2 and not in_process
    assert "other settings (the task (its code" in capsys.readouterr().err

    paths = {"whole": [make(run_rows(), "whole")]}
    algorithms.write(paths, tmp_path / "report-1.5b")
    assert (tmp_path / "report-1.5b.md").exists() and (tmp_path / "report-1.5b.png").exists()
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "picture.png").write_text("mine")
    for name in ("README", "picture"):
        with pytest.raises(NotARun, match="no comparison of algorithms"):
            algorithms.write(paths, tmp_path / name)


def row(step, tokens, **more):
    return {"step": step, "reward": 0.5, "sampled_tokens": tokens, "time/step": 2.0, **more}


def test_figures_of_a_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"rewards": "inverted"}}))
    rows = [{"step": 0, "eval/accuracy": 0.2, "eval/tokens": 30}]
    rows += [row(1, 100, grad_norm=0.5, dead_groups=0.5, skipped=0), row(2, 250, grad_norm=2.0, skipped=1)]
    rows += [{"step": 2, "probe/accuracy": 0.6, "probe/tokens": 50}, row(3, 400)]
    rows += [{"step": 3, "eval/accuracy": 0.5, "eval/tokens": 60}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = load_run(tmp_path)
    assert algorithms.held_out(run, "accuracy")[0].tolist() == [0, 250, 400]
    figures = algorithms.figures_of(run)
    assert figures["tokens_to"] == 250 and figures["seconds_to"] == 4 and figures["seconds"] == 6
    assert figures["norm"] == 2 and figures["skipped"] == 1 and figures["final"] == 0.5
    assert "1/1" in algorithms.table({"x": [run]}, {"x": 1}) and "1, 1 failed" in algorithms.table(
        {"x": [run]}, {"x": 1}
    )
    assert load_runs([tmp_path])[0].name.endswith("(control: inverted reward)")
    assert "control: inverted reward" in curves.curves([run]).texts[0].get_text()


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_are_drawn(make, tmp_path, name, quick):  # noqa: F811
    rows, tail = ODD[name]
    report = tmp_path / "report"
    argv = ["--out", str(report), f"odd={make(rows, 'odd', tail)}", f"whole={make(run_rows(), 'whole')}"]
    assert plot.main(["algorithms", *argv]) == 0
    assert report.with_suffix(".png").exists() and report.with_suffix(".pdf").exists()
    assert "| whole | 1 |" in report.with_suffix(".md").read_text()
