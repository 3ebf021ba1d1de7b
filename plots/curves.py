"""Draw what happened in one or several runs, from the files of their run folders.

    python plots/curves.py runs/mini                    # runs/mini/plots/{curves,growth,metrics}.{png,pdf}
    python plots/curves.py runs/mini --live 20          # again every 20 seconds, while it trains
    python plots/curves.py runs/a runs/b --out ab.png   # overlaid: ab, ab_growth and ab_metrics.{png,pdf}

`curves` shows the training at a glance. `growth` shows why responses try more often: do more of them search
(selection), or does each search go on for longer (persistence)? `metrics` shows every other number that was
logged, whatever the algorithm and the task.
"""

import argparse
import json
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, too
from plots.summary import options

# ---------------------------------------------------------------- a run folder


class NotARun(Exception):
    """No readable run; the message says why and what to do."""


@dataclass
class Run:
    """A run folder's files. `rows`: one dict a step, in order: training, eval/ and probe/ keys."""

    name: str
    path: Path
    config: dict
    environment: dict
    summary: dict
    rows: list[dict]
    base: tuple | None = None  # what the growth is counted from: add_growth
    preset: str = ""
    differences: dict = field(default_factory=dict)  # {option: value} from the preset; {} of an older run

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a key, where it is a finite number."""
        points = [(row["step"], value) for row in self.rows if math.isfinite(value := number(row.get(key)))]
        return tuple(np.array(points, float).reshape(-1, 2).T)


def number(value) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def load_run(path: str | Path) -> Run:
    """Read a run folder, finished or not, and add the growth keys (add_growth). Errors: NotARun."""
    path = Path(path).resolve()
    try:
        config = json.loads((path / "config.json").read_text())
        knobs, environment = dict(config["config"]), config.get("environment", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotARun(
            f"{path} is not a run folder: its config.json cannot be read ({type(error).__name__}: {error}). "
            "Give a folder that training has written, such as runs/mini."
        ) from error
    rows: dict[float, dict] = {}
    text = path / "metrics.jsonl"
    for line in text.read_text(errors="replace").split("\n") if text.exists() else ():
        try:
            row = json.loads(line)
            if math.isfinite(row["step"]):
                rows.setdefault(row["step"], {}).update(row)
        except (ValueError, KeyError, TypeError):
            pass  # empty, or half-written by a run in progress
    rows = [rows[step] for step in sorted(rows)]
    base = add_growth(rows)
    summary, differences = read_dict(path / "summary.json"), dict(config.get("differences") or {})
    preset = str(config.get("preset") or "")
    return Run(path.name, path, knobs, environment, summary, rows, base, preset, differences)


def read_dict(path: Path) -> dict:
    """A JSON file's object; {} if it is missing or malformed."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def load_runs(paths: list) -> list[Run]:
    """Each run once, under a name just long enough to tell it from the others."""
    runs = list({run.path: run for run in map(load_run, paths)}.values())
    depth = 1
    while len({run.path.parts[-depth:] for run in runs}) < len(runs):
        depth += 1
    for run in runs:
        run.name = "/".join(run.path.parts[-depth:]) + (f" ({control(run)})" if control(run) else "")
    return runs


def control(run: Run) -> str:
    """What to call a control run, whose reward is not the task's; "" for any other."""
    mode = run.config.get("reward_mode") or "task"
    return "" if mode == "task" else f"control: {mode} reward"


def so_far(config: dict, step: float) -> str:
    """How far a run is."""
    budget = config.get("token_budget")
    return (
        f"step {step:.0f}, of {budget:,} tokens"
        if budget
        else f"step {step:.0f} of {config.get('steps', '?')}"
    )


def longest_in_pretraining(run: Run) -> float:
    """Attempts of the longest search in the base model's pre-training, by its record.json; NaN if unknown."""
    model = run.config.get("model") or ""
    folder = Path(__file__).parents[1] / model if model == "minibase" else Path(model)
    return number(read_dict(folder / "record.json").get("longest_search", {}).get("attempts"))


# ---------------------------------------------------------------- numbers


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Local linear fit of y (n,) at every x, under Gaussian weights: nothing lags, lines stay lines.

    It is linear in y, so that smoothed parts sum to the smoothed whole.
    """
    if len(x) < 3:
        return y
    width, fit = max(np.median(np.diff(x)), (x[-1] - x[0]) / 20), np.empty(len(y))
    for i, center in enumerate(x):
        near = np.abs(x - center) <= 4 * width
        d = (x[near] - center) / width
        weight = np.exp(-0.5 * d**2)
        s0, s1, s2 = (weight @ d**k for k in range(3))
        if s0 * s2 - s1**2 > 1e-6:  # else the points near by tell no slope
            weight *= s2 - s1 * d
        fit[i] = weight @ y[near] / weight.sum()
    return fit


def decompose(base: tuple, now: tuple) -> dict[str, float]:
    """Split the growth of the attempts per response, from base to now, into parts that sum to it.

    base and now: (attempts per response, share s that searches, attempts w within a search). With d the
    attempts of a response that does not search, attempts = (1-s) d + s w. Selection is what the change of s
    alone would have brought, persistence what the change of w alone would have; both is the product of the
    two changes, which belongs to neither; rest is due to d. Where nothing searches, w is unknown (NaN) and
    counts as unchanged.
    """
    (a0, s0, w0), (a, s, w) = base, now
    w0, w = (v if math.isfinite(v) else u if math.isfinite(u) else 0.0 for v, u in ((w0, w), (w, w0)))
    d0 = (a0 - s0 * w0) / (1 - s0) if s0 < 1 else (a - s * w) / (1 - s) if s < 1 else 0.0
    selection, persistence, both = (s - s0) * (w0 - d0), s0 * (w - w0), (s - s0) * (w - w0)
    rest = a - a0 - selection - persistence - both
    return {
        "growth_selection": selection,
        "growth_persistence": persistence,
        "growth_both": both,
        "growth_rest": rest,
        "growth": a - a0,
    }


def add_growth(rows: list[dict]) -> tuple | None:
    """Add decompose's keys to the rows; returns their base: the first evaluation, or else the first step."""
    found = {}  # (prefix, row): attempts, s, w
    for prefix in ("eval/", "", "probe/"):
        for i, row in enumerate(rows):
            keys = ("attempts", "search_share", "attempts_within_search")
            values = tuple(number(row.get(prefix + key)) for key in keys)
            if all(map(math.isfinite, values[:2])):
                found[prefix, i] = values
    base = next(iter(found.values()), None)
    for (prefix, i), values in found.items():
        rows[i].update({prefix + key: value for key, value in decompose(base, values).items()})
    return base


def first_last(run: Run, key: str) -> tuple[float, float] | None:
    """First and last held-out value of a key; None before there are two."""
    x, y = np.hstack([run.series("eval/" + key), run.series("probe/" + key)])
    return (y[x.argmin()], y[x.argmax()]) if len(x) > 1 else None


# ---------------------------------------------------------------- the look

# Okabe and Ito, and a grey
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
PARTS = ["#56B4E9", "#E69F00", "#009E73", "#bbbbbb"]
ALPHAS = [0.4, 1, 0.7, 0.15]
STYLES = ["-", (0, (2, 1)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))]
GREY = "#666666"
HELD_OUT = [("probe/", "o", 5, "white", None), ("eval/", "D", 8, None, "white")]  # marker, size, face, edge
CAPTION = (
    "Faint: each step. Lines: smoothed. "
    "Held-out problems: ◆ before and after training, ○ during it; bars: 95 % intervals."
)
matplotlib.rcParams.update({
    "font.size": 12, "axes.titlesize": 14, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "axes.titlepad": 24, "grid.color": "#e6e6e6", "legend.frameon": False, "pdf.fonttype": 42,
    "text.parse_math": False,
})  # fmt: skip


LINE, ROW = 125, 0.315  # characters of 12 points on a line of 16 inches, and a line's inches


def sheet(title: str, caption: str, handles: list, columns: int, height: float, head: float) -> Figure:
    """A figure, 16 inches wide, with a title and a caption; under the title, a legend in as many columns as
    fit, `columns` at most. `head` of the height stays free above the axes; the figure grows with the rows of
    the legend.
    """
    half = (LINE - 10) // 2
    for handle in handles:
        name = handle.get_label()
        handle.set_label(name if len(name) <= 2 * half else f"{name[: half - 1]}…{name[-half:]}")
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, min(columns, LINE // (longest + 8)))
    more = ROW * max(0, math.ceil(len(handles) / columns) - 1)  # inches
    share = height / (height + more)
    fig = Figure(figsize=(16, height + more), layout="constrained")
    rect = (0.005, 0.035 * share, 0.99, 1 - (0.035 + head) * share - more / (height + more))
    fig.get_layout_engine().set(rect=rect, w_pad=0.1, h_pad=0.1)
    put_title(fig, title, 1 - 0.05 * share)
    fig.text(0.012, 0.012 * share, caption, fontsize=11, color=GREY)
    if handles:
        place = (0.007, 1 - 0.055 * share)
        legend = fig.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=columns)
        legend.set_in_layout(False)
    return fig


def put_title(fig: Figure, text: str, y: float) -> None:
    """A long one in smaller letters, a very long one in several lines."""
    size = max(9.0, min(20.0, 20 * 80 / max(1, len(text))))
    fig.text(0.012, y, textwrap.fill(text, 200), fontsize=size, weight="bold")


def canvas(runs: list[Run], headline: str, rows: int, count: int, height=9.0) -> tuple[Figure, list]:
    """A sheet with a title, the headline or the runs' names, and `count` axes against the step."""
    alone = len(runs) == 1
    keys = [*runs[0].config, *runs[0].differences]
    shared = {key for key in keys if len({str(run.config.get(key)) for run in runs}) == 1}
    names = [own_name(run, shared) for run in runs]
    handles = [Line2D([], [], color=color(i), lw=4, label=name) for i, name in enumerate(names)]
    fig = sheet(title_of(runs, shared), CAPTION, [] if alone else handles, 5, height, 0.095)
    if alone:
        fig.text(0.012, 0.915, headline, fontsize=14, color=GREY)
    columns = math.ceil(count / rows)
    axes = fig.subplots(rows, columns, squeeze=False).flatten()
    last = max([row["step"] for run in runs for row in run.rows], default=0) or 1
    for i, ax in enumerate(axes):
        ax.set(xlim=(0, last), visible=i < count, xlabel="training step" if i + columns >= count else "")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return fig, axes[:count]


FACTS = ("model", "task", "algo", "seed")  # of a title, whether or not they are the preset's


def title_of(runs: list[Run], shared: set[str]) -> str:
    """What the runs have in common: the facts, the preset, and all options that differ from it."""
    shown = []
    for key in FACTS:
        value = Path(str(runs[0].config.get(key, ""))).name.removesuffix(".py")
        if key in shared and value:
            shown.append(f"seed {value}" if key == "seed" else value)
    presets = {run.preset for run in runs}
    shown += [f"preset {preset}" for preset in presets if preset and len(presets) == 1]
    common = {key: value for key, value in runs[0].differences.items() if key in shared}
    shown += options(common, hidden=(*FACTS, "reward_mode"))
    shown += [control(run) for run in runs if len(runs) == 1 and control(run)]
    return " · ".join(shown) or "training"


def own_name(run: Run, shared: set[str]) -> str:
    """Its name, and the options of its own that the name does not tell."""
    own = {key: v for key, v in run.differences.items() if key not in shared and key not in run.name}
    return ": ".join(filter(None, [run.name, ", ".join(options(own, hidden=("reward_mode",)))]))


def color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def draw_series(ax, run: Run, key: str, color: str, style="-", held_out=True) -> None:
    """One quantity of one run: faint raw values, a smoothed line, held-out values with their intervals."""
    x, y = run.series(key)
    ax.plot(x, y, color=color, lw=0.9, alpha=0.25)
    if len(x):
        fit = smooth(x, y).clip(y.min(), y.max())
        ax.plot(x, fit, color=color, lw=2.2, ls=style, marker="." if len(x) == 1 else None)
    for kind, marker, size, face, edge in HELD_OUT if held_out else ():
        for row in run.rows:
            if isinstance(bounds := row.get(f"{kind}{key}_ci"), list):
                at = [row["step"]] * len(bounds)
                ax.plot(at, [number(v) for v in bounds], color=color, lw=1.3, alpha=0.6, zorder=3)
        x, y = run.series(kind + key)
        if len(x):  # an empty line that is not clipped has a box at the figure's corner and breaks the layout
            ax.plot(x, y, marker, ms=size, mfc=face or color, mec=edge or color, zorder=4, clip_on=False)


# ---------------------------------------------------------------- panels


def lines(ax, runs: list[Run], labels: dict[str, str], overlay: int) -> list:
    """One run: a colour per quantity. Several: the run's colour, and a line style per quantity."""
    alone, handles = len(runs) == 1, []
    for k, (key, label) in enumerate(labels.items()):
        style = "-" if alone else STYLES[k % len(STYLES)]
        for r, run in enumerate(runs):
            draw_series(ax, run, key, color(k if alone else r), style, held_out=k < overlay)
        handles.append(Line2D([], [], color=color(k) if alone else GREY, ls=style, lw=2.2, label=label))
    return handles


def lines_from_base(ax, runs: list[Run], labels: dict[str, str], overlay: int) -> list:
    """lines, and dotted where each base model began; dash-dotted the longest pre-trained search, if near."""
    handles, alone = lines(ax, runs, labels, overlay), len(runs) == 1
    for r, run in enumerate(runs):
        if run.base and math.isfinite(run.base[2]):
            ax.axhline(run.base[2], color=GREY if alone else color(r), lw=1.6, ls=STYLES[2])
            label = f"base: {run.base[2]:.1f}" if alone else "base"
            handles[len(labels) :] = [Line2D([], [], color=GREY, lw=1.6, ls=STYLES[2], label=label)]
    longest = np.fmax.reduce([longest_in_pretraining(run) for run in runs])
    if longest < 2.5 * ax.dataLim.y1:
        ax.axhline(longest, color=GREY, lw=1.6, ls=STYLES[3])
        place = {"transform": ax.get_yaxis_transform(), "va": "bottom", "color": GREY}
        ax.text(0.02, longest, f"longest search in pre-training: {longest:.0f}", **place)
    return handles


def stack(ax, runs: list[Run], labels: dict[str, str], overlay: int) -> list:
    """Parts of `growth`, stacked, negative ones down from 0: over the steps, or a bar per run."""
    if len(runs) > 1:
        return bars(ax, runs, labels)
    x, y = runs[0].series("growth")
    parts = [0 * y, *(smooth(*runs[0].series(key)) for key in labels)]
    for side in (np.maximum, np.minimum):
        edges = np.cumsum(side(parts, 0), axis=0)
        for near, far, shade in zip(edges, edges[1:], PARTS):
            ax.fill_between(x, near, far, color=shade, lw=0)
    draw_series(ax, runs[0], "growth", "black")
    total = Line2D([], [], color="black", lw=2.2, label="sum")
    return [*(Patch(color=shade, label=label) for label, shade in zip(labels.values(), PARTS)), total]


def bars(ax, runs: list[Run], labels: dict[str, str]) -> list:
    """A bar per run, by its last evaluation or else its last step; returns the legend's handles."""
    for r, run in enumerate(runs):
        ends = [first_last(run, key) or [*smooth(*run.series(key))] or [0.0] for key in labels]
        parts = [end[-1] for end in ends]
        for i, (part, alpha) in enumerate(zip(parts, ALPHAS)):
            below = sum(other for other in parts[:i] if other * part > 0)
            ax.bar(r, part, 0.7, below, color=color(r), alpha=alpha)
        ax.text(r, sum(part for part in parts if part > 0), f"{sum(parts):+.1f}", ha="center", va="bottom")
    ax.use_sticky_edges = False
    ax.set(xlim=(-0.6, len(runs) - 0.4), xticks=[], xlabel="by the last evaluation")
    return [
        Patch(color=GREY, alpha=alpha, lw=0, label=label) for label, alpha in zip(labels.values(), ALPHAS)
    ]


@dataclass
class Panel:
    """Quantities on one axis, {key of metrics.jsonl: label}; of several runs the first `overlay` of them."""

    title: str
    unit: str
    labels: dict[str, str]
    share: bool = False
    top: float | None = None
    overlay: int = 1
    how: Callable = lines
    own: bool = False  # to some tasks: left out until it is known

    def known(self, keys: set[str]) -> bool:
        """Whether one of its quantities is among the keys of a run's rows."""
        return any(prefix + key in keys for key in self.labels for prefix in PREFIXES)

    def draw(self, ax, runs: list[Run]) -> None:
        """Draw it with the legend between title and axis, where it covers nothing."""
        keys = [
            key for key in self.labels if any(len(run.series(p + key)[0]) for run in runs for p in PREFIXES)
        ]
        if len(runs) > 1 and len(keys) > self.overlay:
            moving = [key for key in keys if any(run.series(key)[1].any() for run in runs)]
            keys = (moving or keys)[: self.overlay]  # a quantity that is 0 throughout gives way to the next
        labels = {key: self.labels[key] for key in keys}
        handles = self.how(ax, runs, labels, self.overlay) if labels else []
        alone = len(labels) == 1 < len(self.labels)
        ax.set(title=[*labels.values()][0].capitalize() if alone else self.title, ylabel=self.unit)
        if len(handles) > 1:
            ax.legend(
                handles=handles, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, borderpad=0,
                fontsize=10.5, ncols=5, handlelength=1, handletextpad=0.3, columnspacing=0.7,
            ).set_in_layout(False)  # fmt: skip
        if self.share:
            ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.6g}%")
        if not labels:
            ax.text(0.5, 0.5, "no data yet", transform=ax.transAxes, ha="center", color=GREY)
            ax.set_yticks([])
        elif ax.dataLim.y0 >= 0:
            ax.set_ylim(0, self.top)


PREFIXES = ("", "eval/", "probe/")
CURVES = [
    Panel("Reward", "reward per response", {"reward": "reward"}),
    Panel("Accuracy", "share of responses", {"accuracy": "accuracy"}, share=True, top=1),
    Panel("Response length", "tokens", {"tokens": "mean length", "tokens_wrong": "wrong",
                                        "tokens_correct": "right", "tokens_cut": "cut off"}),
    Panel("Attempts and checks", "per response", {"attempts": "attempts", "checks": "checks"}, own=True),
    Panel("Decomposition", "share of responses", {"decomposes": "decompose", "decomposes_fully": "fully"},
          share=True, top=1, own=True),
    Panel("Entropy", "nats per token", {"entropy": "entropy"}),
    Panel("Gradient norm", "before clipping", {"grad_norm": "gradient norm"}),
    Panel("Clipping and dead groups", "share", {"clip_frac": "clipped tokens", "dead_groups": "dead groups"},
          share=True),
    Panel("Cut off at the cap", "share of responses", {"cut_share": "cut off"}, share=True),
]  # fmt: skip
GROWTH = [
    Panel("Selection: do more responses search?", "share", share=True, top=1, overlay=2, labels={
        "search_share": "responses that search", "give_up_share": "searches that give up"}),
    Panel("Persistence: does a search try more?", "attempts", how=lines_from_base, overlay=2, labels={
        "attempts_within_search": "in a search", "attempts": "all responses"}),
    Panel("Growth of the attempts per response", "attempts gained since the base", how=stack, overlay=4,
          labels={
        "growth_selection": "selection", "growth_persistence": "persistence", "growth_both": "both",
        "growth_rest": "rest"}),
]  # fmt: skip
METRICS = [
    Panel("Loss", "policy loss", {"loss": "loss"}),
    Panel("Learning rate", "step size", {"lr": "learning rate"}),
    Panel("What is trained on", "per response", {"reward_shaped": "reward with penalties",
                                                 "task_reward": "the task's reward"}),
    Panel("Spread within a group", "standard deviation", {"reward_std": "reward"}),
    Panel("KL to the reference", "nats per token", {"kl": "KL"}),
    Panel("Rollout against trainer", "nats per token", {"rollout_kl": "KL"}),
    Panel("Arithmetic", "share that is right", share=True, top=1, overlay=2, labels={
        "arithmetic_accuracy": "equations", "verdict_accuracy": "verdicts", "partials_add_up": "sums"}),
    Panel("Answers", "share of responses", {"answered": "answered", "no_answer_share": "none",
                                            "code_share": "code"}, share=True, top=1, overlay=3),
    Panel("Time of a step", "seconds", {"time/step": "all", "time/sample": "sample",
                                        "time/update": "update", "time/score": "score"}),
    Panel("Tokens so far", "tokens", {"sampled_tokens": "sampled"}),
    Panel("Tokens of an update", "tokens", {"updated_tokens": "updated"}),
    Panel("Longest response", "tokens", {"tokens_max": "longest"}),
    Panel("Steps of arithmetic", "per response", {"steps": "steps"}),
    Panel("Updates skipped", "updates", {"skipped": "skipped"}),
    Panel("Verifier errors", "share of responses", {"verifier_error": "errors"}, share=True),
    Panel("Prompts drawn again", "prompts", {"resampled": "resampled"}),
    Panel("Critic: values", "reward", {"value": "value"}),
    Panel("Critic: loss", "squared reward", {"value_loss": "loss"}),
    Panel("Critic: variance explained", "share", {"explained_variance": "explained"}, share=True),
    Panel("PRM: loss", "nats", {"prm_loss": "loss"}),
    Panel("PRM: accuracy", "share of responses", {"prm_accuracy": "accuracy"}, share=True, top=1),
    Panel("PRM: process reward", "reward per token", {"process_reward": "process reward"}),
]  # fmt: skip
UNDRAWN = {"step", "n", "problems", "growth", "pass@1", "cons@1"}


def other_panels(keys: set[str]) -> list[Panel]:
    """Panels of what the figures `curves` and `growth` do not show; those that nobody foresaw come last."""
    drawn = {key for panel in [*CURVES, *GROWTH, *METRICS] for key in panel.labels} | UNDRAWN
    plain = {key.removeprefix("eval/").removeprefix("probe/") for key in keys}
    own = sorted(key for key in plain - drawn if not key.endswith("_ci"))
    votes = {key: key for key in own if key.startswith(("pass@", "cons@"))}
    several = Panel("Several samples", "share of problems", votes, share=True, top=1, overlay=9)
    found = [panel for panel in [*METRICS, several] if panel.known(keys)]
    return found + [Panel(key, "as logged", {key: key}) for key in own if key not in votes]


# ---------------------------------------------------------------- the figures


def curves(runs: list[Run]) -> Figure:
    """Everything at a glance. A panel whose quantities the runs' task does not have is left out."""
    keys = {key for run in runs for row in run.rows for key in row}
    panels = [panel for panel in CURVES if panel.known(keys) or "reward" not in keys and not panel.own]
    done, facts = runs[0].series("reward")[0], []
    if ends := first_last(runs[0], "accuracy"):
        facts.append("held-out accuracy {:.0%} → {:.0%}".format(*ends))
    if ends := first_last(runs[0], "tokens"):
        facts.append("response length {:.0f} → {:.0f} tokens".format(*ends))
    facts.append(so_far(runs[0].config, done[-1] if len(done) else 0))
    fig, axes = canvas(runs, "   |   ".join(facts), 2, len(panels))
    for ax, panel in zip(axes, panels):
        panel.draw(ax, runs)
    return fig


def growth(runs: list[Run]) -> Figure | None:
    """Where the growth comes from; None where the task does not say which responses search."""
    keys = {key for run in runs for row in run.rows for key in row}
    if keys and not keys & {prefix + "search_share" for prefix in PREFIXES}:
        return None
    headline = "Why do responses try more often?"
    if ends := first_last(runs[0], "attempts"):
        names = {"selection": "by selection", "persistence": "by persistence", "both": "by both at once"}
        parts = {name: first_last(runs[0], f"growth_{key}") for key, name in names.items()}
        parts = ", ".join(f"{value[1]:+.1f} {name}" for name, value in parts.items() if value)
        headline = f"attempts per response {ends[0]:.1f} → {ends[1]:.1f}: {parts}"
    fig, axes = canvas(runs, headline, 1, len(GROWTH))
    for ax, panel in zip(axes, GROWTH):
        panel.draw(ax, runs)
    return fig


def metrics(runs: list[Run]) -> Figure | None:
    """Every other number that was logged; None before there is one."""
    keys = {key for run in runs for row in run.rows for key in row if math.isfinite(number(row[key]))}
    if not (panels := other_panels(keys)):
        return None
    rows = math.ceil(len(panels) / 4)
    fig, axes = canvas(runs, "everything else that was logged", rows, len(panels), max(9, 2.8 * rows))
    for ax, panel in zip(axes, panels):
        panel.draw(ax, runs)
    return fig


# ---------------------------------------------------------------- command line


def save(fig: Figure, folder: Path, name: str) -> None:
    """Write name.png and name.pdf, each at once: nobody ever sees half a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".pdf"):
        aside = folder / f".{name}.{os.getpid()}{suffix}"
        try:
            fig.savefig(aside, dpi=120)
            os.replace(aside, folder / (name + suffix))
        finally:
            aside.unlink(missing_ok=True)


def draw(paths: list, out: Path | None = None) -> str:
    """Draw the figures; returns a line that says where."""
    runs = load_runs(paths)
    folder, kind = out or runs[0].path / "plots", "comparison_" if len(runs) > 1 and not out else ""
    names = {f"{kind}curves": curves(runs), f"{kind}growth": growth(runs), f"{kind}metrics": metrics(runs)}
    if out and out.suffix in (".png", ".pdf"):
        folder, stem = out.parent, out.stem
        names = dict(zip((stem, f"{stem}_growth", f"{stem}_metrics"), names.values()))
    names = {name: fig for name, fig in names.items() if fig}
    for name, fig in names.items():
        save(fig, folder, name)
    return ", ".join(str(folder / f"{name}.png") for name in names) + " and .pdf"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, help="image file or folder (default: plots/ of the first run)")
    parser.add_argument("--live", type=float, metavar="SECONDS", help="draw again so often, until Ctrl-C")
    args = parser.parse_args(argv)
    try:
        print(draw(args.runs, args.out))
        while args.live:
            time.sleep(max(args.live, 1))
            print(time.strftime("%H:%M:%S"), draw(args.runs, args.out), flush=True)
    except (NotARun, OSError) as error:
        print(f"Nothing drawn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
