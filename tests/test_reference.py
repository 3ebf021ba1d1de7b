"""reference: its bases, runs and parts exist and parse; what is missing is made; the page says what it is."""

import json
import shlex
from pathlib import Path

import pytest
from test_plots import make, run_rows  # noqa: F401
from test_train import QUICK

import tinyr1
from commands import reference
from commands.reference import BASES, PARTS, RUNS, Part, Plan
from minibase import make as minibase
from plots import pages
from plots.runs import NotARun, load_run
from runtime.runfolder import UserError


def test_every_base_and_every_run_is_a_command_that_parses():
    plan = Plan(Path("runs/reference"), Path("pages"), ["0", "1"])
    for name, options in BASES.items():
        minibase.parse([*shlex.split(options), "--out", name])
    names = {plan.train(run, seed)[-1] for run in RUNS for seed in plan.seeds}
    assert len(names) == 2 * len(RUNS)
    for run in RUNS:
        tinyr1.parse(plan.train(run, "0"))
    for part in PARTS.values():
        assert set(part.runs.values()) <= RUNS.keys() and (part.runs or part.commands)
    measured = [job for name in PARTS for job in plan.commands(name)]
    assert len({job.name for job in measured}) == len(measured)
    for job in measured:
        assert job.argv[0] in tinyr1.COMMANDS and "{" not in shlex.join(job.argv)


def test_a_base_is_made_once_and_refused_if_it_was_made_otherwise(tmp_path):
    plan = Plan(tmp_path, tmp_path, ["0"])
    assert [job.name for job in plan.bases_of(RUNS["dip"])] == ["base dip"]
    folder = tmp_path / "bases" / "dip"
    folder.mkdir(parents=True)
    command = f"python tinyr1.py make-base {BASES['dip']} --out {folder} --overwrite"
    (folder / "record.json").write_text(json.dumps({"command": command}))
    assert not list(plan.bases_of(RUNS["dip"]))
    (folder / "record.json").write_text(json.dumps({"command": command.replace("3e6", "9e6")}))
    with pytest.raises(UserError, match="made with other options or from another base: delete it"):
        list(plan.bases_of(RUNS["dip"]))
    (folder / "record.json").write_text(json.dumps({"command": command, "start_digest": "of another base"}))
    with pytest.raises(UserError, match="made with other options or from another base: delete it"):
        list(plan.bases_of(RUNS["dip"]))


def test_the_command_from_end_to_end(tiny, bandit, tmp_path, monkeypatch, capfd):
    run = shlex.join(["--model", tiny, "--task", bandit, *QUICK, "--steps", "2"])
    monkeypatch.setitem(RUNS, "quick", run)
    monkeypatch.setitem(PARTS, "quick", Part("A quick part", {"bandit": "quick"}, {"": pages.seed_curves}))
    out, page = tmp_path / "out", tmp_path / "pages" / "quick.md"
    argv = ["reference", "quick", "--seeds", "0,1", "--jobs", "2", "--out", str(out)]
    argv += ["--pages", str(page.parent)]
    assert tinyr1.main([*argv, "--list"]) == 0
    assert "quick-s0, quick-s1 missing" in capfd.readouterr().out
    assert tinyr1.main(["reference", "dip", "algorithms", "--list", "--out", str(out)]) == 0
    told = capfd.readouterr().out
    assert "base dip, the runs missing" in told and "made by compare_algos, which resumes" in told
    assert tinyr1.main(argv) == 0, (out / "logs" / "quick-s0.log").read_text()
    text = page.read_text()
    assert "| bandit | 2 |" in text and pages.NOTES in text and page.with_suffix(".png").exists()
    assert "--seed SEED" in text
    page.write_text(text + "Mine.\n")
    capfd.readouterr()
    # finished runs stay, and so does what people wrote
    assert tinyr1.main(argv) == 0 and "finished" not in capfd.readouterr().out
    assert page.read_text().endswith("Mine.\n") and page.read_text().count(pages.NOTES) == 1
    assert tinyr1.main(["reference", "dosis"]) == 2 and "Did you mean" in capfd.readouterr().err
    assert tinyr1.main([*argv, "--jobs", "0"]) == 2 and "--jobs 0" in capfd.readouterr().err


def test_the_table_of_wider_problems(tmp_path):
    """Two problems: the base solves the first one, the trained model both."""
    for n in reference.WIDTHS:
        for name, right in (("base", (True, False)), ("s0", (True, True))):
            folder = tmp_path / f"eval-wide-{n}-{name}"
            folder.mkdir()
            figures = {key: 0.25 for key in ("accuracy", "pass@16", "pass@256", "search_share", "cut_share")}
            found = {"sets": {"countdown": figures | {"tokens": 30.0, "attempts": 1.5}}}
            (folder / "eval.json").write_text(json.dumps(found))
            rows = [
                {"prompt": f"p{i}", "completion": "", "correct": correct, "task": "countdown"}
                for i, correct in enumerate(right)
            ]
            (folder / "eval_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = reference.generalisation_table(Plan(tmp_path, tmp_path, ["0"]))
    assert text.count("| 25.0% | 25.0% | 25.0% | 25.0% | 25.0% | 30.0 | 1.5 |") == 2 * len(reference.WIDTHS)
    # trained only, base only, both, neither
    row = "| 4 | s0 | 50% [9%, 91%] | 0% [0%, 66%] | 50% [9%, 91%] | 0% [0%, 66%] |"
    assert row in text.split("\n")


def test_the_table_of_a_page(make):  # noqa: F811
    folders = [make(run_rows(), f"s{seed}", seed=seed) for seed in (0, 1)]
    for folder, trained in zip(folders, (0.8, 0.9)):
        sides = {"base": {"accuracy": 0.2, "search_share": 0.3}}
        sides |= {
            "trained": {"accuracy": trained, "search_share": 1.0},
            "seconds": {"total": 90, "plots": 30},
        }
        (folder / "summary.json").write_text(json.dumps(sides))
    runs = [load_run(folder) for folder in folders]
    # behaviour(4) is the first with half of the responses searching
    assert pages.step_of_half(runs[0]) == 4 and pages.minutes(runs[0]) == 1
    head, _, row = pages.table({"mini": runs}).split("\n")
    assert head.count("|") == row.count("|")
    assert "| mini | 2 | 20.0% → 85.0% (80.0%–90.0%) | 30.0% → 100.0% |" in row
    assert "| never, never | 4, 4 |" in row


def test_a_page_that_is_somebody_elses_is_not_replaced(make, tmp_path):  # noqa: F811
    runs = [load_run(make(run_rows(), "s0"))]
    (tmp_path / "mine.md").write_text("mine")
    with pytest.raises(NotARun, match="is no page of `tinyr1.py reference`"):
        pages.write(tmp_path / "mine", "Mine", [], {"mini": runs}, {})
    assert (tmp_path / "mine.md").read_text() == "mine"


def test_values_over_tokens_are_drawn_for_the_groups_that_have_them(make):  # noqa: F811
    rows = [row | {"sampled_tokens": 100 * row["step"]} if "reward" in row else row for row in run_rows()]
    groups = {"one": [load_run(make(rows, "one"))], "none": [load_run(make([], "none"))]}
    axes = pages.over_tokens("A title")(groups).axes
    assert [len(ax.lines) for ax in axes] == [1, 1, 1, 1]
    assert axes[0].lines[0].get_xydata()[-1].tolist() == [1200, 0.8]
