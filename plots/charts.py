"""The look that all figures share, and charts: what a panel shows, as the figures and the report draw it."""

import math
import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from plots.runs import History, control, number
from plots.statistics import smooth
from plots.summary import options

# ---------------------------------------------------------------- the look

# Okabe and Ito, and a grey
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
STYLES = ["-", (0, (2, 1)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))]
DOTTED, DASH_DOTTED = STYLES[2:]
GREY = "#666666"
# of held-out values: key prefix, marker, size, face, edge
HELD_OUT = [("probe/", "o", 5, "white", None), ("eval/", "D", 8, None, "white")]
CAPTION = (
    "Faint: each step. Lines: smoothed. "
    "Held-out problems: ◆ before and after training, ○ during it; bars: 95 % intervals."
)
# of a legend between a panel's title and its axis, where it covers nothing
ABOVE_AXIS = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3, "borderpad": 0}
matplotlib.rcParams.update({
    "font.size": 12, "axes.titlesize": 14, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "axes.titlepad": 24, "grid.color": "#e6e6e6", "legend.frameon": False, "pdf.fonttype": 42,
    "text.parse_math": False,
})  # fmt: skip


def color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def in_percent(ax) -> None:
    """Label the y axis of shares in per cent."""
    ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.6g}%")


def say_no_data(ax) -> None:
    ax.text(0.5, 0.5, "no data yet", transform=ax.transAxes, ha="center", color=GREY)
    ax.set_yticks([])


# characters of 12 points on a line of 16 inches, and a line's inches
LINE, ROW = 125, 0.315


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
    # inches
    more = ROW * max(0, math.ceil(len(handles) / columns) - 1)
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


def canvas(runs: list[History], headline: str, rows: int, count: int, height=9.0) -> tuple[Figure, list]:
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


# options that a title tells, whether or not they are the preset's
FACTS = ("model", "task", "algo", "seed")


def title_of(runs: list[History], shared: set[str]) -> str:
    """What the runs have in common: the facts, the preset, and all options that differ from it."""
    shown = []
    for key in FACTS:
        value = Path(str(runs[0].config.get(key, ""))).name.removesuffix(".py")
        if key in shared and value:
            shown.append(f"seed {value}" if key == "seed" else value)
    presets = {run.preset for run in runs}
    shown += [f"preset {preset}" for preset in presets if preset and len(presets) == 1]
    common = {key: value for key, value in runs[0].differences.items() if key in shared}
    # a control is named by `control`
    shown += options(common, hidden=(*FACTS, "rewards") if control(runs[0]) else FACTS)
    shown += [control(run) for run in runs if len(runs) == 1 and control(run)]
    return " · ".join(shown) or "training"


def own_name(run: History, shared: set[str]) -> str:
    """Its name, and the options of its own that the name does not tell."""
    own = {key: value for key, value in run.differences.items() if key not in shared and key not in run.name}
    hidden = ("rewards",) if control(run) else ()
    return ": ".join(filter(None, [run.name, ", ".join(options(own, hidden=hidden))]))


def draw_series(ax, run: History, key: str, color: str, style="-", held_out=True) -> None:
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
        # an empty line that is not clipped has a box at the figure's corner and breaks the layout
        if len(x):
            ax.plot(x, y, marker, ms=size, mfc=face or color, mec=edge or color, zorder=4, clip_on=False)


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


# ---------------------------------------------------------------- charts


@dataclass
class Series:
    """points: [x, y, low, high], low and high None where there is no interval. kind: line (with its points),
    smooth (without), points (alone), or faint.
    """

    label: str
    color: int
    points: list
    kind: str = "line"


@dataclass
class Chart:
    """What a panel shows. mark: a step to mark, None without one."""

    title: str
    y: str
    series: list[Series] = field(default_factory=list)
    x: str = "training step"
    share: bool = False
    log_x: bool = False
    note: str = ""
    mark: float | None = None


def draw_chart(chart: Chart, ax) -> None:
    """Draw it with the legend between title and axis and the note below."""
    for series in chart.series:
        draw_points(series, line_style(series, chart), ax)
    ax.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    if chart.series:
        add_legend(chart, ax)
        if ax.dataLim.y0 >= 0:
            ax.set_ylim(0, 1 if chart.share else None)
        if chart.share:
            in_percent(ax)
    else:
        say_no_data(ax)
    if chart.log_x and chart.series:
        ticks = sorted({point[0] for series in chart.series for point in series.points})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if chart.mark is not None:
        ax.axvline(chart.mark, color=GREY, lw=1.6, ls=DOTTED)
    if "gain" in chart.y:
        ax.axhline(0, color=GREY, lw=1)
    below = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
    ax.annotate(wrap(chart.note, 54), (0, 0), (0, -40), fontsize=10, color=GREY, **below)


def line_style(series: Series, chart: Chart):
    """Each line has a style of its own, so that coinciding lines are both seen."""
    lines = [other for other in chart.series if other.kind == "line"]
    return STYLES[lines.index(series) % len(STYLES)] if series in lines else "-"


def draw_points(series: Series, style, ax) -> None:
    x, y = [point[0] for point in series.points], [point[1] for point in series.points]
    shade = color(series.color)
    if series.kind == "faint":
        ax.plot(x, y, color=shade, lw=0.9, alpha=0.3)
        return
    at, _, low, high = np.array([point for point in series.points if None not in point]).reshape(-1, 4).T
    if series.kind != "points":
        ax.fill_between(at, low, high, color=shade, alpha=0.08, lw=0)
    if series.kind != "smooth":
        ax.vlines(at, low, high, color=shade, lw=1.3, alpha=0.7)
    style = "" if series.kind == "points" else style
    marker = None if series.kind == "smooth" else "o"
    ax.plot(x, y, color=shade, lw=2.2, ls=style, marker=marker, ms=5, clip_on=False, zorder=3)


def add_legend(chart: Chart, ax) -> None:
    """A handle per label."""
    handles = {}
    for series in chart.series:
        look = {"color": color(series.color), "lw": 2.2, "ls": line_style(series, chart)}
        handles[series.label] = Line2D([], [], **look, marker="o", ms=5, label=series.label)
    close = {"fontsize": 10.5, "handlelength": 1.8, "handletextpad": 0.35, "columnspacing": 0.7}
    ax.legend(handles=handles.values(), ncols=4, **ABOVE_AXIS, **close).set_in_layout(False)


def wrap(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) < width:
            lines[-1] = f"{lines[-1]} {word}".strip()
        else:
            lines.append(word)
    return "\n".join(lines)
