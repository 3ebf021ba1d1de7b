"""Pages of plots/reference/: tables and figures of groups of runs. A group is the same settings with several
seeds. `python tinyr1.py reference` makes the runs and calls `write`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import aha, curves, dip
from plots.algorithms import NOTES, about_runs, draw_panel, look, mean_range, notes_of
from plots.behaviours import evaluations, run_samples
from plots.charts import color, in_percent, save, sheet
from plots.runs import History, NotARun, number

Groups = dict[str, list[History]]

UNWRITTEN = "\n\n*To be written by whoever ran it.* A range over three seeds is no confidence interval.\n"

COLUMNS = {  # key of an evaluation -> head of the column, whether it is a share
    "accuracy": ("held-out accuracy", True), "accepted": ("accepted", True),
    "tokens": ("tokens per response", False), "attempts": ("attempts per response", False),
    "attempts_within_search": ("attempts in a search", False),
    "search_share": ("responses that search", True), "give_up_share": ("searches given up", True),
    "decomposes": ("responses that decompose", True), "decomposes_fully": ("down to digits", True),
    "code_share": ("that write code", True), "cut_share": ("cut off", True),
    "verdict_accuracy": ("verdicts that are right", True),
}  # fmt: skip
# shown only where a group has them above 0
RARE = {"code_share", "decomposes", "decomposes_fully"}


# ---------------------------------------------------------------- one run


def before_after(run: History, key: str) -> tuple[float, float]:
    """The base's and the trained model's value on the held-out problems; NaN where there is none."""
    sides = (run.summary.get("base") or {}, run.summary.get("trained") or {})
    before, after = (number(side.get(key)) for side in sides)
    return before, after


def repeats(run: History) -> float:
    """Share of the last evaluation's attempts that repeat one of the same response; NaN without attempts."""
    evals = evaluations(run_samples(run.path))
    last = [s["does"] for samples in evals[max(evals)].values() for s in samples] if evals else []
    attempts = sum(does.get("attempts", 0) for does in last)
    return sum(does.get("repeats", 0) for does in last) / attempts if attempts else math.nan


def aha_step(run: History) -> float:
    """NaN if there was no such step."""
    found = aha.first_aha(aha.aha_steps(evaluations(run_samples(run.path))))
    return found.step if found else math.nan


def step_of_half(run: History) -> float:
    """The first step in whose samples at least half of the responses search; NaN without one."""
    steps, shares = run.series("search_share")
    reached = np.flatnonzero(shares >= 0.5)
    return steps[reached[0]] if len(reached) else math.nan


def seconds(run: History) -> float:
    """Seconds of training steps, without evaluations."""
    return float(run.series("time/step")[1].sum())


def minutes(run: History) -> float:
    """Minutes of training and evaluation, without the drawing."""
    spent = run.summary.get("seconds") or {}
    return (number(spent.get("total")) - number(spent.get("plots", 0.0))) / 60


# ---------------------------------------------------------------- the table


def known(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def steps_told(values: Sequence[float]) -> str:
    """Such as 4, 6, never."""
    return ", ".join(f"{value:.0f}" if math.isfinite(value) else "never" for value in values)


def cell(runs: list[History], key: str) -> str:
    """`base → trained (lowest–highest)`; the base is the same for all seeds of a group."""
    form = ".1%" if COLUMNS[key][1] else ".1f"
    pairs = [before_after(run, key) for run in runs]
    before = mean_range(known([pair[0] for pair in pairs])[:1], form)
    return f"{before} → {mean_range(known([pair[1] for pair in pairs]), form)}"


def table(groups: Groups) -> str:
    every = [run for runs in groups.values() for run in runs]
    keys = []
    for key in COLUMNS:
        values = [value for run in every for value in before_after(run, key) if math.isfinite(value)]
        if any(values) or values and key not in RARE:
            keys.append(key)
    searching = "search_share" in keys
    heads = ["", "seeds", *(COLUMNS[key][0] for key in keys)]
    heads += ["repeats", "aha step", "half of the responses search at step"] if searching else []
    heads += ["seconds of training", "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, runs in groups.items():
        cells = [name, str(len(runs)), *(cell(runs, key) for key in keys)]
        if searching:
            # run by run: both measure its samples, and only those of the last run are kept
            repeated, steps = zip(*((repeats(run), aha_step(run)) for run in runs))
            cells += [mean_range(known(repeated), ".0%"), steps_told(steps)]
            cells.append(steps_told([step_of_half(run) for run in runs]))
        cells.append(mean_range([seconds(run) for run in runs], ".0f"))
        cells.append(mean_range(known([minutes(run) for run in runs]), ".1f"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------- figures


def seed_curves(groups: Groups) -> Figure:
    """Everything about the first seed of each group."""
    return curves.curves([runs[0] for runs in groups.values()])


def seed_growth(groups: Groups) -> Figure | None:
    return curves.growth([runs[0] for runs in groups.values()])


def seed_aha(groups: Groups) -> Figure:
    run = next(iter(groups.values()))[0]
    return aha.figure(run, run_samples(run.path))


def seed_dip(groups: Groups) -> Figure:
    return dip.figure(next(iter(groups.values()))[0])


# as algorithms.PANELS
OVER_TOKENS = {
    "accuracy": ("Accuracy on held-out problems", "share of responses", True),
    "tokens": ("Response length", "tokens", False),
    "search_share": ("Responses that search", "share of responses", True),
    "attempts_within_search": ("Attempts in a search", "attempts", False),
}  # fmt: skip
HACKED = {
    "reward": ("Reward on held-out problems", "per response", False),
    "accuracy": OVER_TOKENS["accuracy"], "tokens": OVER_TOKENS["tokens"],
    "verdict_accuracy": ("Verdicts in the responses that are right", "share of verdicts", True),
}  # fmt: skip


def over_tokens(title: str, panels: dict = OVER_TOKENS) -> Callable[[Groups], Figure]:
    """A figure of four held-out values against sampled tokens: mean and range over the seeds."""

    def draw(groups: Groups) -> Figure:
        handles = [Line2D([], [], label=name, **look(i, name)) for i, name in enumerate(groups)]
        fig = sheet(title, "Lines: mean over the seeds. Bands: lowest to highest.", handles, 4, 9.0, 0.105)
        for ax, (key, panel) in zip(fig.subplots(2, 2).flatten(), panels.items()):
            draw_panel(ax, key, panel, groups)
        return fig

    return draw


AGAINST = {
    "accuracy": ("Accuracy on held-out problems", True), "search_share": ("Responses that search", True),
    "attempts": ("Attempts per response", False),
}  # fmt: skip


def against(
    title: str, x: dict[str, float], label: str, ticks: dict[float, str]
) -> Callable[[Groups], Figure]:
    """A figure of what the seeds of each group came to, against a number x per group: before and after, and
    the step at which half of the responses search.
    """

    def draw(groups: Groups) -> Figure:
        handles = [
            Line2D([], [], color=color(i), marker="o", label=name)
            for i, name in enumerate(("base", "trained"))
        ]
        note = "Dots: seeds; lines: their mean. A cross at the top: not within the run."
        fig = sheet(title, note, handles, 2, 9.0, 0.105)
        axes = fig.subplots(2, 2).flatten()
        for ax, (key, (about, share)) in zip(axes, AGAINST.items()):
            for side in (0, 1):
                values = {
                    name: [before_after(run, key)[side] for run in runs] for name, runs in groups.items()
                }
                dots(ax, x, values, color(side))
            ax.set(title=about, ylim=(0, 1.02 if share else None))
            if share:
                in_percent(ax)
        halves = {name: [step_of_half(run) for run in runs] for name, runs in groups.items()}
        dots(axes[-1], x, halves, color(2))
        never = [x[name] for name, values in halves.items() for value in values if not math.isfinite(value)]
        last = max((run.series("reward")[0][-1] for runs in groups.values() for run in runs), default=1.0)
        axes[-1].scatter(never, [last] * len(never), marker="x", color=color(2))
        axes[-1].set(title="Step at which half of the responses search", ylim=(0, None))
        for ax in axes:
            ax.set_xlabel(label)
            ax.set_xticks(list(ticks), ticks.values())
        return fig

    return draw


def dots(ax, x: dict[str, float], values: dict[str, list[float]], shade: str) -> None:
    """One dot per seed, and a line through the groups' means."""
    means = []
    for name, seeds in values.items():
        finite = [value for value in seeds if math.isfinite(value)]
        ax.scatter([x[name]] * len(finite), finite, s=24, color=shade, alpha=0.6)
        if finite:
            means.append((x[name], float(np.mean(finite))))
    if means:
        ax.plot(*zip(*sorted(means)), color=shade)


# ---------------------------------------------------------------- the page


def write(page: Path, title: str, commands: list[str], groups: Groups, figures: dict, more: str = "") -> str:
    """PAGE.md with the table, and PAGE<suffix>.png per figure: {suffix: function of the groups}. Text from
    the heading NOTES on is kept. Returns where the page is. Errors: NotARun.
    """
    if not any(groups.values()):
        raise NotARun("no run of this part has finished.")
    groups = {name: runs for name, runs in groups.items() if runs}
    notes = notes_of(page, UNWRITTEN, "page of `tinyr1.py reference`")
    pictures = []
    for suffix, draw in figures.items():
        if fig := draw(groups):
            save(fig, page.parent, page.name + suffix)
            pictures.append(f"![{title}]({page.name}{suffix}.png)")
    typed = "\n".join(commands)
    about = about_runs(next(iter(groups.values()))[0])
    if len({run.environment.get("threads") for runs in groups.values() for run in runs}) > 1:
        about += " Runs had different numbers of threads, so their seconds do not compare."
    parts = [
        f"# {title}", f"```\n{typed}\n```", about, *pictures,
        "On the held-out problems, base → trained: mean (lowest–highest) over the seeds.",
        table(groups), more, NOTES + notes,
    ]  # fmt: skip
    page.with_suffix(".md").write_text("\n\n".join(part for part in parts if part))
    return f"written: {page}.md"
