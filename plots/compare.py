"""Compare runs: seeds of the same settings grouped, the groups side by side and their differences.

    python tinyr1.py plot compare runs/mini runs/mini-seed_1 runs/mini-seed_2 runs/guess --out comparison

prints a table in Markdown and writes comparison/compare.{md,png,pdf}. The first group is what the others are
compared with, on the held-out problems that all of them answered at their last evaluation.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots.behaviours import evaluations, per_problem, run_samples
from plots.charts import Chart, Series, color, draw_chart, save, sheet
from plots.runs import History, load_runs
from plots.statistics import DRAWS, NO_INTERVAL, smooth
from plots.summary import DIGESTS

NO_SETTING = {"seed", "name", "out", "overwrite", "device", "save_every", "keep_samples"}
FIGURES = {  # key of an evaluation -> (head, whether it is a share)
    "accuracy": ("accuracy", True), "tokens": ("tokens", False), "attempts": ("attempts", False),
    "attempts_within_search": ("attempts in a search", False), "search_share": ("that search", True),
    "decomposes": ("that decompose", True), "cut_share": ("cut off", True),
}  # fmt: skip
DIFFERENCES = {"correct": ("accuracy", True), "tokens": ("tokens", False), "attempts": ("attempts", False),
               "backtracks": ("backtracks", False), "decomposes": ("decompositions", True),
               "steps": ("decomposition steps", False)}  # fmt: skip
PANELS = {
    "accuracy": ("Accuracy", "share of responses", True), "reward": ("Reward", "reward per response", False),
    "tokens": ("Response length", "tokens", False), "attempts": ("Attempts", "attempts per response", False),
    "search_share": ("Responses that search", "share of responses", True),
    "decomposes": ("Responses that decompose", "share of responses", True),
    "entropy": ("Entropy", "nats per token", False),
}  # fmt: skip
# to some tasks: no panel where no run has it
OWN = {"attempts", "search_share", "decomposes"}


def grouped(runs: list[History]) -> dict[str, list[History]]:
    """{name: runs that differ by the seed alone}, in the order given; the name tells what sets them apart.
    Runs of another base model, task or trainer, by their digests, are apart; so is a second run of the same
    seed, which is no further seed. A setting that a run of another version does not have sets nothing apart.
    """
    groups: list[tuple[dict, list[History]]] = []
    for run in runs:
        settings = {key: str(value) for key, value in run.config.items() if key not in NO_SETTING}
        digests = {key: run.environment.get(key) for key in DIGESTS}
        settings |= {key: value or "none" for key, value in digests.items() if value is not None}
        for known, members in groups:
            alike = all(known[key] == settings[key] for key in known.keys() & settings.keys())
            if alike and run.config.get("seed") not in [other.config.get("seed") for other in members]:
                members.append(run)
                break
        else:
            groups.append((settings, [run]))
    keys = dict.fromkeys(key for settings, _ in groups for key in settings)
    apart = [key for key in keys if len({settings[key] for settings, _ in groups if key in settings}) > 1]
    names = {}
    for settings, members in groups:
        told = ", ".join(f"{key} {Path(settings[key]).name}" for key in apart[:3] if key in settings)
        name = told if told and told not in names else members[0].name
        names[name] = members
    return names


def last_evaluation(run: History, key: str, which: int = -1) -> float:
    values = run.series("eval/" + key)[1]
    # one evaluation is the base model's
    return values[which] if len(values) > (which == -1) else math.nan


def spread(values: list[float], share: bool) -> str:
    """Mean ± standard deviation over seeds, of those that have a value."""
    known = [value * (100 if share else 1) for value in values if math.isfinite(value)]
    if not known:
        return "–"
    deviation = f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{deviation}" + (" %" if share else "")


# ---------------------------------------------------------------- differences


def answers(runs: list[History]) -> list[dict[str, list[dict]]]:
    """For each run {problem: its held-out samples at the last evaluation}; runs with one are left out."""
    found = [evaluations(run_samples(run.path)) for run in runs]
    return [evals[max(evals)] for evals in found if len(evals) > 1]


def difference(one: list[dict], other: list[dict], key: str):
    """other - one on their common problems: (mean, low, high, number of problems); None without any.

    one, other: a {problem: samples} per seed. 95 % bootstrap interval that resamples problems, paired, and
    the seeds of each group.
    """
    sides = [[per_problem(problems, key) for problems in side] for side in (one, other)]
    if not all(sides):
        return None
    common = sorted(set.intersection(*(set(values) for side in sides for values in side)))
    if len(common) < 2:
        return None
    rng, means, drawn = np.random.default_rng(0), [], []
    problems = rng.integers(0, len(common), (DRAWS, 1, len(common)))
    for side in sides:
        # (seeds, problems)
        values = np.array([[seed[name] for name in common] for seed in side])
        seeds = rng.integers(0, len(values), (DRAWS, len(values), 1))
        means.append(values.mean())
        drawn.append(values[seeds, problems].mean((1, 2)))
    low, high = np.quantile(drawn[1] - drawn[0], (0.025, 0.975))
    return float(means[1] - means[0]), float(low), float(high), len(common)


def table(groups: dict[str, list[History]]) -> str:
    """Both tables in Markdown: the groups, and their differences from the first."""
    lines = table_of_groups(groups)
    return "\n".join(lines + (table_of_differences(groups) if len(groups) > 1 else []))


def table_of_groups(groups: dict[str, list[History]]) -> list[str]:
    every = [run for runs in groups.values() for run in runs]
    keys = [key for key in FIGURES if any(len(run.series("eval/" + key)[0]) for run in every)]
    lines = ["| runs | seeds | base accuracy | " + " | ".join(FIGURES[key][0] for key in keys) + " |"]
    lines.append("|---" * (len(keys) + 3) + "|")
    for name, runs in groups.items():
        cells = [spread([last_evaluation(run, "accuracy", 0) for run in runs], True)]
        cells += [spread([last_evaluation(run, key) for run in runs], FIGURES[key][1]) for key in keys]
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return [*lines, "", "After training, on held-out problems: mean ± standard deviation over seeds."]


def table_of_differences(groups: dict[str, list[History]]) -> list[str]:
    """From the first group; with a note on what the intervals mean."""
    first, *others = groups
    kept = {name: answers(runs) for name, runs in groups.items()}
    rows = {}
    for name in others:
        rows[name] = {key: difference(kept[first], kept[name], key) for key in DIFFERENCES}
    keys = [key for key in DIFFERENCES if any(row[key] for row in rows.values())]
    if not keys:
        return ["", "No differences: the runs have no held-out problem in common yet."]
    lines = ["", f"| minus {first} | " + " | ".join(DIFFERENCES[key][0] for key in keys) + " |"]
    lines.append("|---" * (len(keys) + 1) + "|")
    for name, row in rows.items():
        cells = [gap(row[key], DIFFERENCES[key][1]) for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    problems = max(row[key][3] for row in rows.values() for key in keys if row[key])
    note = (
        f"Differences on the {problems} held-out problems whose answers both kept, with 95 % bootstrap "
        "intervals over problems (paired) and seeds."
    )
    if min(map(len, kept.values())) < 2:
        note += " A group of one seed shows nothing of how seeds differ: read its intervals as too narrow."
    return [*lines, "", note]


def gap(found, share: bool) -> str:
    if not found:
        return "–"
    scale, unit = (100, " points") if share else (1, "")
    mean, low, high = (scale * value for value in found[:3])
    # where every resample has the same difference, they tell nothing about its interval
    return f"{mean:+.1f}{unit}" + (f" [{low:+.1f}, {high:+.1f}]" if low < high else "")


# ---------------------------------------------------------------- the figure


def over_seeds(runs: list[History], key: str, smoothed: bool) -> list[list[float]]:
    """[step, mean, lowest, highest] over the runs, at the steps that all of them have."""
    found = []
    for run in runs:
        x, y = run.series(key)
        if len(x):
            found.append(dict(zip(x.tolist(), (smooth(x, y) if smoothed else y).tolist())))
    steps = sorted(set.intersection(*map(set, found))) if found else []
    points = []
    for step in steps:
        values = [run[step] for run in found]
        bounds = (min(values), max(values)) if len(values) > 1 else NO_INTERVAL
        points.append([step, float(np.mean(values)), *bounds])
    return points


def charts(groups: dict[str, list[History]]) -> list[Chart]:
    found = []
    for key, (title, unit, share) in PANELS.items():
        chart = Chart(title, unit, share=share)
        for i, (name, runs) in enumerate(groups.items()):
            chart.series.append(Series(name, i, over_seeds(runs, key, True), "smooth"))
            for prefix in ("probe/", "eval/"):
                chart.series.append(Series(name, i, over_seeds(runs, prefix + key, False), "points"))
        chart.series = [series for series in chart.series if series.points]
        if chart.series or key not in OWN:
            found.append(chart)
    return found


def seeds(runs: list[History]) -> str:
    return f"{len(runs)} seed{'s' * (len(runs) > 1)}"


def figure(groups: dict[str, list[History]]) -> Figure:
    handles = [
        Line2D([], [], color=color(i), lw=4, label=f"{name}: {seeds(runs)}")
        for i, (name, runs) in enumerate(groups.items())
    ]
    caption = (
        "Lines: training, smoothed, mean over seeds. Dots: held-out problems. Bands and bars: lowest to "
        "highest seed."
    )
    fig = sheet("The same problems, other settings", caption, handles, 4, 9.0, 0.105)
    axes, found = fig.subplots(2, 3).flatten(), charts(groups)
    for ax, chart in zip(axes, found):
        draw_chart(chart, ax)
        if ax.get_legend():
            ax.get_legend().remove()
    for ax in axes[len(found) :]:
        ax.set_visible(False)
    return fig


def write(paths: list[Path], out: Path | None = None) -> str:
    """Write compare.md, .png and .pdf; returns the tables and where they are. Errors: NotARun."""
    runs = load_runs(paths)
    groups, folder = grouped(runs), out or runs[0].path / "plots"
    text = table(groups)
    save(figure(groups), folder, "compare")
    (folder / "compare.md").write_text(text + "\n", encoding="utf-8")
    return f"{text}\n\n{folder}/compare.md, .png and .pdf"
