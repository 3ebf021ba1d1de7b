"""Does the task decide which reasoning emerges? One base, trained on either task, evaluated on both.

    python tinyr1.py plot crossed base=runs/eval-base countdown=runs/eval-mini multiplication=runs/eval-mult

reads the eval.json of each folder (of `tinyr1.py eval ... --task countdown:...,multiplication:...`), prints a
table in Markdown and writes a figure: accuracy and the task's own way of reasoning, searching or decomposing,
before training and after training on either task.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from plots.charts import GREY, color, save
from plots.runs import NotARun

WAYS = {  # task -> figures of an evaluation, as shares, and what they are called
    "countdown": {"accuracy": "accuracy", "search_share": "search"},
    "multiplication": {
        "accuracy": "accuracy", "decomposes": "decompose", "decomposes_fully": "into single digits",
    },
}  # fmt: skip
LENGTHS = {"tokens": "tokens"}


def read(path: Path) -> dict[str, dict]:
    """{task: figures} of an evaluation's folder. Errors: NotARun."""
    try:
        sets = json.loads((path / "eval.json").read_text())["sets"]
    except (OSError, ValueError, KeyError) as error:
        raise NotARun(f"{path} holds no finished evaluation: {type(error).__name__}: {error}.") from error
    found = {task: figures for name, figures in sets.items() for task in WAYS if name.split(":")[0] == task}
    if missing := WAYS.keys() - found.keys():
        raise NotARun(
            f"{path} was not evaluated on {', '.join(missing)}: run `python tinyr1.py eval ... "
            f"--task {','.join(WAYS)}`."
        )
    return found


def table(models: dict[str, dict]) -> str:
    heads = ["trained on"]
    for task, ways in WAYS.items():
        heads += [f"{task}: {name}" for name in (*ways.values(), *LENGTHS.values())]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for model, tasks in models.items():
        cells = [model]
        for task, ways in WAYS.items():
            cells += [f"{tasks[task][key]:.1%}" for key in ways]
            cells += [f"{tasks[task][key]:.1f}" for key in LENGTHS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(models: dict[str, dict]) -> Figure:
    fig = Figure(figsize=(14, 5.6), layout="constrained")
    fig.get_layout_engine().set(rect=(0.005, 0.05, 0.99, 0.81), w_pad=0.15)
    fig.text(0.012, 0.93, "The task decides which reasoning emerges", fontsize=20, weight="bold")
    width = 0.8 / len(models)
    axes = fig.subplots(1, len(WAYS), width_ratios=[len(ways) for ways in WAYS.values()])
    for ax, (task, ways) in zip(axes, WAYS.items()):
        places = np.arange(len(ways))
        for i, (model, tasks) in enumerate(models.items()):
            shares = [100 * tasks[task][key] for key in ways]
            at = places + (i - (len(models) - 1) / 2) * width
            look = {"label": f"trained on {model}", "color": color(i - 1)}
            if i == 0:
                look = {"label": model, "color": GREY}
            bars = ax.bar(at, shares, 0.92 * width, **look)
            ax.bar_label(bars, fmt="%.0f", fontsize=11, padding=9)
            if interval := tasks[task].get("accuracy_ci"):
                low, high = (100 * bound for bound in interval)
                ax.errorbar(at[0], shares[0], [[shares[0] - low], [high - shares[0]]], color="k")
        ax.set_xticks(places, ways.values(), fontsize=12)
        ax.set(title=f"on {task}", ylim=(0, 115), ylabel="% of responses", yticks=range(0, 101, 25))
        ax.title.set_fontsize(14)
        ax.spines[["top", "right"]].set_visible(False)
    fig.text(0.012, 0.015, "Black bars: 95 % bootstrap intervals over problems.", fontsize=11, color=GREY)
    place = {"loc": "upper right", "bbox_to_anchor": (0.99, 0.985), "ncols": len(models)}
    fig.legend(*axes[0].get_legend_handles_labels(), fontsize=12, **place).set_in_layout(False)
    return fig


def write(folders: dict[str, Path], out: Path | None = None) -> str:
    """Draw the models' evaluations, FILE.png and .pdf; returns the table. Errors: NotARun."""
    models = {name: read(folder) for name, folder in folders.items()}
    out = out or next(iter(folders.values())) / "crossed.png"
    save(draw(models), out.parent, out.stem)
    return table(models)
