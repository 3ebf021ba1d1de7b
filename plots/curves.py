"""Draw what happened in one or several runs, from the files of their run folders.

    python tinyr1.py plot curves runs/mini                    # in runs/mini/plots/
    python tinyr1.py plot curves runs/mini --live 20          # again every 20 seconds, while it trains
    python tinyr1.py plot curves runs/a runs/b --out ab.png   # overlaid: ab, ab_growth, ab_metrics

Three figures, each as .png and .pdf. `curves` shows the training at a glance. `growth` shows why responses
try more often: do more of them search (selection), or does each search last longer (persistence)? `metrics`
shows every other number that was logged, whatever the algorithm and the task.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from plots.charts import (
    ABOVE_AXIS,
    DASH_DOTTED,
    DOTTED,
    GREY,
    STYLES,
    canvas,
    color,
    draw_series,
    in_percent,
    save,
    say_no_data,
)
from plots.runs import History, first_last, load_runs, longest_in_pretraining, number, so_far
from plots.statistics import smooth

# colours of the parts of the growth; in a bar of a run's own colour, how opaque each part is
PARTS = ["#56B4E9", "#E69F00", "#009E73", "#bbbbbb"]
ALPHAS = [0.4, 1, 0.7, 0.15]

# ---------------------------------------------------------------- ways to draw a panel


def lines(ax, runs: list[History], labels: dict[str, str], overlay: int) -> list:
    """One run: a colour per quantity. Several: the run's colour, and a line style per quantity."""
    alone, handles = len(runs) == 1, []
    for k, (key, label) in enumerate(labels.items()):
        style = "-" if alone else STYLES[k % len(STYLES)]
        for r, run in enumerate(runs):
            draw_series(ax, run, key, color(k if alone else r), style, held_out=k < overlay)
        handles.append(Line2D([], [], color=color(k) if alone else GREY, ls=style, lw=2.2, label=label))
    return handles


def lines_from_base(ax, runs: list[History], labels: dict[str, str], overlay: int) -> list:
    """lines, and dotted where each base model began; dash-dotted the longest pre-trained search, if near."""
    handles, alone = lines(ax, runs, labels, overlay), len(runs) == 1
    for r, run in enumerate(runs):
        if run.base and math.isfinite(run.base[2]):
            ax.axhline(run.base[2], color=GREY if alone else color(r), lw=1.6, ls=DOTTED)
            label = f"base: {run.base[2]:.1f}" if alone else "base"
            handles[len(labels) :] = [Line2D([], [], color=GREY, lw=1.6, ls=DOTTED, label=label)]
    longest = np.fmax.reduce([longest_in_pretraining(run) for run in runs])
    if longest < 2.5 * ax.dataLim.y1:
        ax.axhline(longest, color=GREY, lw=1.6, ls=DASH_DOTTED)
        place = {"transform": ax.get_yaxis_transform(), "va": "bottom", "color": GREY}
        ax.text(0.02, longest, f"longest search in pre-training: {longest:.0f}", **place)
    return handles


def stack(ax, runs: list[History], labels: dict[str, str], overlay: int) -> list:
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


def bars(ax, runs: list[History], labels: dict[str, str]) -> list:
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


# ---------------------------------------------------------------- panels


@dataclass
class Panel:
    """Quantities on one axis, {key of metrics.jsonl: label}; of several runs the first `overlay` of them.

    own: only some tasks have it, so it is left out until it is known.
    """

    title: str
    unit: str
    labels: dict[str, str]
    share: bool = False
    top: float | None = None
    overlay: int = 1
    how: Callable = lines
    own: bool = False

    def known(self, keys: set[str]) -> bool:
        """Whether one of its quantities is among the keys of a run's rows."""
        return any(prefix + key in keys for key in self.labels for prefix in PREFIXES)

    def draw(self, ax, runs: list[History]) -> None:
        """Draw it with the legend between title and axis, where it covers nothing."""
        everywhere = [(run, prefix) for run in runs for prefix in PREFIXES]
        keys = [
            key for key in self.labels if any(len(run.series(prefix + key)[0]) for run, prefix in everywhere)
        ]
        if len(runs) > 1 and len(keys) > self.overlay:
            moving = [key for key in keys if any(run.series(key)[1].any() for run in runs)]
            # a quantity that is 0 throughout gives way to the next
            keys = (moving or keys)[: self.overlay]
        labels = {key: self.labels[key] for key in keys}
        handles = self.how(ax, runs, labels, self.overlay) if labels else []
        alone = len(labels) == 1 < len(self.labels)
        ax.set(title=[*labels.values()][0].capitalize() if alone else self.title, ylabel=self.unit)
        if len(handles) > 1:
            close = {"fontsize": 10.5, "handlelength": 1, "handletextpad": 0.3, "columnspacing": 0.7}
            ax.legend(handles=handles, ncols=5, **ABOVE_AXIS, **close).set_in_layout(False)
        if self.share:
            in_percent(ax)
        if not labels:
            say_no_data(ax)
        elif ax.dataLim.y0 >= 0:
            ax.set_ylim(0, self.top)


PREFIXES = ("", "eval/", "probe/")
CURVES = [
    Panel("Reward", "reward per response", {"reward": "reward"}),
    Panel("Accuracy", "share of responses", {"accuracy": "accuracy", "accepted": "accepted by the verifier"},
          share=True, top=1),
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
    Panel("Time per step", "seconds", {"time/step": "all", "time/sample": "sample",
                                        "time/update": "update", "time/score": "score"}),
    Panel("Tokens so far", "tokens", {"sampled_tokens": "sampled"}),
    Panel("Tokens per update", "tokens", {"updated_tokens": "updated"}),
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


def curves(runs: list[History]) -> Figure:
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


def growth(runs: list[History]) -> Figure | None:
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


def metrics(runs: list[History]) -> Figure | None:
    """Every other number that was logged; None before there is one."""
    keys = {key for run in runs for row in run.rows for key in row if math.isfinite(number(row[key]))}
    if not (panels := other_panels(keys)):
        return None
    rows = math.ceil(len(panels) / 4)
    fig, axes = canvas(runs, "everything else that was logged", rows, len(panels), max(9, 2.8 * rows))
    for ax, panel in zip(axes, panels):
        panel.draw(ax, runs)
    return fig


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
