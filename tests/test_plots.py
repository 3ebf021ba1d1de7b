"""plots/curves.py and `plot` on made-up run folders: whole, half-written, sparse, empty, several, none."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

import tinyr1
from commands import plot
from plots import algorithms, charts, compare, curves, runs, statistics
from plots.runs import load_run, load_runs
from runtime import runfolder
from runtime.runfolder import UserError

PARTS = ("selection", "persistence", "both", "rest")
CONFIG = {"model": "minibase", "task": "countdown", "algo": "grpo", "seed": 0, "steps": 12}


def behaviour(step: int) -> dict:
    """A model that searches more (0.3 to 0.9) and longer (2.8 to 7.6); else it makes one attempt."""
    share, within = 0.3 + 0.05 * step, 2.8 + 0.4 * step
    attempts = (1 - share) + share * within
    return {
        "accuracy": 0.2 + 0.05 * step, "accuracy_ci": [0.15 + 0.05 * step, 0.25 + 0.05 * step],
        "tokens": 38 + 7 * step, "tokens_correct": 30 + 6 * step, "tokens_wrong": 40 + 9 * step,
        "attempts": attempts, "checks": 0.9 * attempts, "search_share": share,
        "attempts_within_search": within, "give_up_share": 0.7 - 0.05 * step, "cut_share": 0.0,
    }  # fmt: skip


def run_rows(steps: int = 12) -> list[dict]:
    extra = {"entropy": 0.5, "grad_norm": 0.3, "clip_frac": 0.0, "dead_groups": 0.25, "loss": 0.1, "lr": 2e-4}
    rows = [{"step": 0} | {f"eval/{k}": v for k, v in behaviour(0).items()}]
    for step in range(1, steps + 1):
        rows.append({"step": step, "reward": 0.2 + 0.05 * step} | behaviour(step) | extra)
        if step % 5 == 0:
            rows.append({"step": step} | {f"probe/{k}": v for k, v in behaviour(step).items()})
    return rows + [{"step": steps} | {f"eval/{k}": v for k, v in behaviour(steps).items()}]


@pytest.fixture
def make(tmp_path):
    def make(rows, name="mini", tail="", record=None, **config) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        content = {"config": CONFIG | config, "environment": {"torch": "2"}} | (record or {})
        (folder / "config.json").write_text(json.dumps(content))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
        return folder

    return make


def titles(fig) -> dict:
    return {ax.get_title(loc="left"): ax for ax in fig.axes if ax.get_visible()}


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def drawn(ax) -> list[np.ndarray]:
    return [line.get_xydata() for line in ax.get_lines() if len(line.get_xydata())]


# ---------------------------------------------------------------- reading


def test_load_run_merges_the_rows_of_a_step_and_skips_what_is_half_written(make):
    run = load_run(make(run_rows(), tail='[]\n{"step": 13, "rewa'))
    assert [row["step"] for row in run.rows] == list(range(13))
    assert run.rows[12]["accuracy"] == run.rows[12]["eval/accuracy"] == pytest.approx(0.8)
    assert (run.name, run.config["algo"], run.environment, run.summary) == (
        "mini",
        "grpo",
        {"torch": "2"},
        {},
    )


def test_series_leaves_out_what_is_no_finite_number(make):
    values = [1.0, None, float("nan"), float("inf"), "text", [1], 2]
    rows = [{"step": step, "entropy": value} for step, value in enumerate(values)]
    steps, found = load_run(make([*rows, {"step": None}, {"step": float("nan")}])).series("entropy")
    assert steps.tolist() == [0, 6] and found.tolist() == [1, 2]


def test_names_tell_runs_apart(make):
    paths = [make([], "a/mini"), make([], "b/mini"), make([], "b/other")]
    assert [run.name for run in load_runs([*paths, paths[0]])] == ["a/mini", "b/mini", "b/other"]
    assert [run.name for run in load_runs(paths[1:])] == ["mini", "other"]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("x", [np.arange(40.0), np.array([0, 1, 2, 7, 30, 31, 80, 81.0]), np.arange(2.0)])
def test_smooth_keeps_constants_and_straight_lines(x):
    assert np.allclose(statistics.smooth(x, np.full(len(x), 3.0)), 3)
    assert np.allclose(statistics.smooth(x, 2 * x - 5), 2 * x - 5)


def test_smooth_does_not_shift_in_time_and_is_linear():
    x, rng = np.arange(61.0), np.random.default_rng(0)
    peak = statistics.smooth(x, (x == 30).astype(float))
    assert peak.argmax() == 30 and np.allclose(peak, peak[::-1])
    a, b = rng.normal(size=(2, 61))
    assert np.allclose(statistics.smooth(x, a) + statistics.smooth(x, b), statistics.smooth(x, a + b))
    assert statistics.smooth(x, a)[5:-5].std() < 0.6 * a.std()


NAN = float("nan")


@pytest.mark.parametrize(
    "base, now, selection, persistence, both, rest",
    [
        ((1.6, 0.3, 3.0), (1.8, 0.4, 3.0), 0.2, 0, 0, 0),  # only more of them search
        ((1.6, 0.3, 3.0), (2.2, 0.3, 5.0), 0, 0.6, 0, 0),  # only for longer
        ((1.6, 0.3, 3.0), (4.6, 0.9, 5.0), 1.2, 0.6, 1.2, 0),
        ((1.6, 0.3, 3.0), (1.25, 0.3, 3.0), 0, 0, 0, -0.35),  # direct answers with 0.5 attempts
        ((1.6, 0.3, 3.0), (5.0, 1.0, 5.0), 1.4, 0.6, 1.4, 0),
        ((1.0, 0.0, NAN), (3.0, 0.5, 5.0), 2.0, 0, 0, 0),  # the base never searches
        ((1.0, 0.0, NAN), (1.0, 0.0, NAN), 0, 0, 0, 0),
        ((1.6, 0.3, 3.0), (1.0, 0.0, NAN), -0.6, 0, 0, 0),
        ((3.0, 1.0, 3.0), (2.0, 0.5, 3.0), -1.0, 0, 0, 0),  # the base always searches
    ],
)
def test_decompose(base, now, selection, persistence, both, rest):
    parts = runs.decompose(base, now)
    expected = [selection, persistence, both, rest, now[0] - base[0]]
    assert [*parts.values()] == pytest.approx(expected, abs=1e-12)
    assert sum([*parts.values()][:4]) == pytest.approx(parts["growth"], abs=1e-12)


def test_growth_counts_from_the_first_evaluation_and_its_parts_sum_to_it(make):
    run = load_run(make(run_rows()))
    assert run.base == (pytest.approx(0.7 + 0.3 * 2.8), 0.3, 2.8)
    for prefix in ("", "probe/", "eval/"):
        total = run.series(prefix + "growth")[1]
        parts = [run.series(f"{prefix}growth_{part}")[1] for part in PARTS]
        assert np.allclose(sum(parts), total) and np.allclose(
            total, run.series(prefix + "attempts")[1] - run.base[0]
        )
    assert run.series("eval/growth_selection")[1][-1] == pytest.approx(0.6 * 1.8)
    no_eval = load_run(make(run_rows()[1:2], "training only"))
    assert no_eval.base[1:] == pytest.approx((0.35, 3.2)) and no_eval.series("growth")[1].tolist() == [0]


# ---------------------------------------------------------------- figures


def test_curves_draws_the_right_numbers(make):
    panels = titles(curves.curves([load_run(make(run_rows()))]))
    assert len(panels) == 8
    raw, smoothed, *bars, probes, start, end, evals = drawn(panels["Accuracy"])
    bars += [start, end]
    assert np.allclose(raw, [(step, 0.2 + 0.05 * step) for step in range(1, 13)]) and np.allclose(
        smoothed, raw
    )
    assert np.allclose(bars, [[(s, 0.15 + 0.05 * s), (s, 0.25 + 0.05 * s)] for s in (5, 10, 0, 12)])
    assert np.allclose(probes, [(5, 0.45), (10, 0.7)]) and np.allclose(evals, [(0, 0.2), (12, 0.8)])
    labels = [text.get_text() for text in panels["Response length"].get_legend().get_texts()]
    assert labels == ["mean length", "wrong", "right"]  # nothing was cut off


def test_the_verdict_that_was_hacked_is_drawn_beside_the_accuracy(make):
    rows = [
        row | {"accepted": 1.0} if "reward" in row else row | {"eval/accepted": 1.0} for row in run_rows()
    ]
    panels = titles(curves.curves([load_run(make(rows))]))
    labels = [text.get_text() for text in panels["Accuracy"].get_legend().get_texts()]
    assert labels == ["accuracy", "accepted by the verifier"] and len(panels) == 8


def test_panels_without_data_say_so_and_those_of_another_task_are_left_out(make):
    before = titles(curves.curves([load_run(make(run_rows()[:1], "before"))]))
    assert len(before) == 8 and texts(before["Entropy"]) == ["no data yet"] and not texts(before["Accuracy"])
    other = [{"step": 1, "reward": 1.0, "entropy": NAN, "accuracy": 1.0}]
    other = load_run(make(other, "other"))
    panels = titles(curves.curves([other]))
    assert [*panels] == ["Reward", "Accuracy", "Entropy"] and texts(panels["Entropy"]) == ["no data yet"]
    assert curves.growth([other]) is None


def test_several_runs_are_overlaid_by_their_main_quantity(make):
    still = [{k: v for k, v in row.items() if "attempts_within" not in k} for row in run_rows()]
    found = load_runs([make(run_rows(), "a"), make(still, "b", seed=1)])
    fig = curves.curves(found)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "b"]
    panels = titles(fig)
    assert "Dead groups" in panels and "Mean length" in panels  # nothing was ever clipped
    assert "minibase · countdown · grpo" in [text.get_text() for text in fig.texts]
    panel = titles(curves.growth(found))["Growth of the attempts per response"]
    heights = [bar.get_height() for bar in panel.patches]
    assert heights[:4] == pytest.approx([0.6 * 1.8, 0.3 * 4.8, 0.6 * 4.8, 0], abs=1e-9)


def test_the_longest_search_of_the_pretraining_is_drawn_where_the_model_records_it(make, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/record.json").write_text('{"longest_search": {"attempts": 11, "tokens": 150}}')
    for name, model, lines in (
        ("with", str(tmp_path / "base"), ["longest search in pre-training: 11"]),
        ("without", "hub/id", []),
    ):
        fig = curves.growth([load_run(make(run_rows(), name, model=model))])
        assert texts(titles(fig)["Persistence: does a search try more?"]) == lines


def test_every_number_that_is_logged_is_drawn(make):
    more = {"kl": 0.1, "value_loss": 0.2, "time/step": 3.0, "eval/pass@4": 0.5, "task/own": 0.3, "skipped": 0}
    run = load_run(make([row | more for row in run_rows()]))
    keys = {key for row in run.rows for key in row}
    panels = [*curves.CURVES, *curves.GROWTH, *curves.other_panels(keys)]
    shown = {prefix + key for panel in panels for key in panel.labels for prefix in curves.PREFIXES}
    missing = {key for key in keys - shown if not key.endswith("_ci")} - curves.UNDRAWN
    assert {key.removeprefix("eval/").removeprefix("probe/") for key in missing} <= curves.UNDRAWN
    assert {"KL to the reference", "Critic: loss", "task/own"} <= titles(curves.metrics([run])).keys()
    assert all(ax.get_ylabel() for ax in titles(curves.metrics([run])).values())


DIFFERENCES = {"lr": 0.001, "task_args": ["numbers=3", "reward=simplerl"]}


def test_a_title_lists_every_option_that_differs_from_the_preset(make):
    record = {"preset": "mini", "differences": DIFFERENCES}
    a, b = (make(run_rows(), name, record=record, lr=lr) for name, lr in (("a", 0.001), ("b", 0.002)))
    alone = curves.curves([load_run(a)]).texts[0]
    assert alone.get_text() == (
        "minibase · countdown · grpo · seed 0 · preset mini · lr 0.001 · task_args numbers=3 reward=simplerl"
    )
    fig = curves.curves(load_runs([a, b]))
    assert "lr" not in fig.texts[0].get_text() and "reward=simplerl" in fig.texts[0].get_text()
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a: lr 0.001", "b: lr 0.001"]
    record = {"differences": {"rewards": "random"}}
    control = curves.curves(load_runs([make(run_rows(), "c", record=record, rewards="random")]))
    assert control.texts[0].get_text().endswith("seed 0 · control: random reward")
    old = load_run(make(run_rows(), "old"))  # of a version that recorded none of it
    assert curves.curves([old]).texts[0].get_text() == "minibase · countdown · grpo · seed 0"


@pytest.mark.parametrize(
    "label", ["mini", "mini-lr_" + 9 * "reinforce++", "Models/WW, a run_" * 4, "algo_1" * 50]
)
def test_legends_and_titles_stay_on_the_page(make, label):
    record = {"differences": {f"overlong_buffer_{i}": 128 for i in range(20)}}
    found = load_runs([make(run_rows(), str(i), record=record, lr=i) for i in range(13)])
    for i, run in enumerate(found):
        run.name = f"{label}{i}"
    groups = {run.name: [run] for run in found}
    for fig in (curves.curves(found), curves.metrics(found), compare.figure(groups), algorithms.draw(groups)):
        renderer = FigureCanvasAgg(fig).get_renderer()
        fig.draw_without_rendering()
        page, legend = fig.bbox, fig.legends[0].get_window_extent(renderer)
        title = fig.texts[0].get_window_extent(renderer)
        above = max(ax.title.get_window_extent(renderer).y1 for ax in fig.axes if ax.get_visible())
        assert 0 <= legend.x0 and legend.x1 <= page.x1 and title.x1 <= page.x1 and title.y1 <= page.y1
        assert above <= legend.y0 and legend.y1 <= title.y0 + 6  # pixels of the legend's own margin


# ---------------------------------------------------------------- the command

ODD = {
    "no step": ([], ""),
    "half a line": ([], '{"step": 1, "rew'),
    "one step": (run_rows()[1:2], ""),
    "missing keys": ([{"step": 1}, {"step": 2, "reward": 0.5}, {"step": 3, "eval/accuracy_ci": [None]}], ""),
    "no numbers": ([dict.fromkeys(row, NAN) | {"step": step} for step, row in enumerate(run_rows())], ""),
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """Figures are laid out, and not drawn."""

    def lay_out(fig, path, dpi):
        path.touch()
        if path.suffix == ".png":
            fig.draw_without_rendering()

    monkeypatch.setattr(charts.Figure, "savefig", lay_out)


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_are_drawn(make, name, quick):
    rows, tail = ODD[name]
    folder = make(rows, tail=tail)
    assert plot.main(["curves", str(folder)]) == 0
    assert plot.main(["curves", str(folder), str(make(run_rows(), "other"))]) == 0
    assert (folder / "plots/curves.png").exists() and (folder / "plots/comparison_curves.pdf").exists()


def test_command_writes_whole_images(make, tmp_path):
    folder = make(run_rows(), "a $tr_ange ünicode name")
    assert plot.main(["curves", str(folder), "--out", str(tmp_path / "new/fig.v1.png")]) == 0
    written = {path.name: path.stat().st_size for path in (tmp_path / "new").iterdir()}
    names = ("fig.v1", "fig.v1_growth", "fig.v1_metrics")
    assert set(written) == {name + kind for name in names for kind in (".pdf", ".png")}
    assert min(written.values()) > 10_000
    assert (tmp_path / "new/fig.v1.png").read_bytes()[:4] == b"\x89PNG"


def test_live_redraws_until_interrupted(make, monkeypatch, capsys):
    naps = iter([None, KeyboardInterrupt()])

    def sleep(seconds):
        if (nap := next(naps)) is not None:
            raise nap

    monkeypatch.setattr(plot.time, "sleep", sleep)
    monkeypatch.setattr(curves, "save", lambda *_: None)
    assert plot.main(["curves", str(make(run_rows())), "--live", "20"]) == 0
    assert capsys.readouterr().out.count("curves.png") == 2


@pytest.mark.parametrize("content", [None, "not json", "[]", "{}"])
def test_not_a_run_is_one_clear_line(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    for name in ("curves", "aha", "compare", "dip", "report", "all"):
        with pytest.raises(UserError, match="is not a run folder") as error:
            plot.main([name, str(tmp_path)])
        assert "\n" not in str(error.value) and not (tmp_path / "plots").exists()
    with pytest.raises(UserError, match="no summary.json"):
        plot.main(["summary", str(tmp_path)])


def test_unwritable_place_is_one_clear_line(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Nothing drawn"):
        plot.main(["curves", str(make(run_rows())), "--out", str(tmp_path / "file/folder")])


@pytest.mark.parametrize(
    "argv, message",
    [
        (["curvse", "runs/x"], "Did you mean curves?"),
        (["nowhere"], "neither a run folder nor something to draw"),
        (["curves"], "`tinyr1.py plot curves --help`"),
        (["curves", "--nothing", "1", "runs/x"], "nrecognized arguments: --nothing"),
        (["algorithms", "--out", "x", "runs/a"], "NAME=RUN,RUN is expected"),
        ([], "`tinyr1.py plot --help`"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(argv, message, capsys):
    assert tinyr1.main(["plot", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["", *plot.KINDS])
def test_the_help_explains_every_figure_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as end:
        plot.main([*filter(None, [name]), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"    python tinyr1.py plot {name}" in text
    assert name or all(re.search(rf"^    {kind}\b", text, re.M) for kind in plot.KINDS)


def test_a_run_alone_means_everything(make, tmp_path, quick, capsys):
    folder = make(run_rows(), record={"environment": {}})
    assert tinyr1.main(["plot", str(folder)]) == 0
    drawn = {f"{name}.{kind}" for name in ("curves", "growth", "metrics", "aha") for kind in ("png", "pdf")}
    assert {path.name for path in (folder / "plots").iterdir()} == drawn
    assert f"Report: {folder}/report.html" in capsys.readouterr().out
    # a closing table needs a finished run
    sides = {side: {"accuracy": share, "tokens": 30.0} for side, share in (("base", 0.2), ("trained", 0.8))}
    (folder / "summary.json").write_text(json.dumps({"steps": 12} | sides))
    (folder / "samples.jsonl").touch()
    assert plot.main(["summary", str(folder)]) == 0
    assert re.search(r"accuracy on held-out problems +20.0% +80.0%", capsys.readouterr().out)


def test_what_fails_is_named_and_the_others_are_drawn(make, capsys):
    folder = make(run_rows())
    (folder / "plots").write_text("no folder")
    assert plot.main(["all", str(folder)]) == 1
    said = capsys.readouterr()
    assert "the curves: not drawn" in said.err and (folder / "report.html").exists()


def test_training_imports_nothing_that_draws():
    command = [sys.executable, "-c", "import sys, tinyr1; sys.exit('matplotlib' in sys.modules)"]
    assert subprocess.run(command, cwd=tinyr1.HERE).returncode == 0


SUBPROCESS = """
import sys
from plots.__main__ import main
code = main(*sys.argv[1:])
print({"torch", "transformers", "runtime", "tinyr1"} & sys.modules.keys())
sys.exit(code)
"""


def test_training_draws_from_any_folder_and_without_torch(make, tmp_path, monkeypatch):
    """Also where the user's folder has a `plots` of its own; a relative model is meant from there."""
    monkeypatch.undo()
    (tmp_path / "mine" / "plots").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py", "report.py"):
        (tmp_path / "mine" / "plots" / name).write_text("raise SystemExit('not this one')")
    (tmp_path / "mine" / "base").mkdir()
    (tmp_path / "mine" / "base/record.json").write_text('{"longest_search": {"attempts": 11}}')
    folder = make(run_rows(), "mine/runs/x", model="base")
    monkeypatch.chdir(tmp_path / "mine")
    said = runfolder.Pictures(Path("runs/x")).finish()
    assert f"Report: {folder}/report.html" in said and "not drawn" not in said
    assert runs.longest_in_pretraining(load_run("runs/x")) == 11
    curves.draw([folder], tmp_path / "here")
    there, here = (imread(path / "growth.png") for path in (folder / "plots", tmp_path / "here"))
    assert there.shape == here.shape and np.abs(there - here).max() < 0.05
    command = [sys.executable, "-c", SUBPROCESS, "report", folder, tmp_path / "mine"]
    done = subprocess.run(command, cwd=tinyr1.HERE, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("report.html\nset()\n"), done.stderr
