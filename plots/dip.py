"""The dip: do responses first get shorter, because writing code vanishes before searching appears?

    python tinyr1.py plot dip runs/mini-dip       # runs/mini-dip/plots/dip.{png,pdf}, and the dip in words

SimpleRL (hkust-nlp.notion.site/simplerl-reason) saw the length fall, then grow. It explained the fall by the
base model's habit of writing code, which vanished before reflection appeared. The figure shows the length
and, below it, the shares that test this explanation.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots.charts import ABOVE_AXIS, COLORS, DOTTED, GREY, canvas, draw_series, in_percent, save
from plots.runs import History, load_run
from plots.statistics import smooth

# a dip goes below this share of the base's length
SHALLOW = 0.9
# share of responses that write code, below which a run is not about code
RARE = 0.01
WAYS = {"write code": COLORS[4], "guess": "#bbbbbb", "search": COLORS[0]}


def concerns(folder: Path) -> bool:
    """Whether the run's responses ever wrote code to speak of."""
    return max(load_run(folder).series("code_share")[1], default=0.0) > RARE


def ways(run: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and smoothed shares (3,n) of the training responses, in the order of WAYS. What neither
    writes code nor searches guesses; what does both counts twice, at the cost of guessing.
    """
    rows = {key: dict(zip(*(v.tolist() for v in run.series(key)))) for key in ("code_share", "search_share")}
    x = np.array(sorted(rows["code_share"].keys() & rows["search_share"].keys()))
    code, search = (smooth(x, np.array([values[step] for step in x])) for values in rows.values())
    return x, np.stack([code, 1 - code - search, search]).clip(0, 1)


def turns(run: History) -> list[tuple[float, float]]:
    """(step, smoothed length) of training at its start, where it is shortest, and at its end; [] without."""
    x, y = run.series("tokens")
    y = smooth(x, y)
    return [(x[i], y[i]) for i in (0, y.argmin(), -1)] if len(x) else []


def sentence(run: History) -> str:
    if not (found := turns(run)):
        return "No dip yet: it takes a step of training."
    (first, start), (step, low), (last, end) = found
    x, (code, _, _) = ways(run)

    def wrote(at: float) -> str:
        return f"{code[np.abs(x - at).argmin()]:.0%}"

    told = "code not counted"
    if len(x):
        told = f"code in {wrote(first)} → {wrote(step)} → {wrote(last)} of them"
    if low > SHALLOW * start or step == last:
        return f"No dip: response length {start:.0f} → {end:.0f} tokens, at the shortest {low:.0f}; {told}."
    return f"The dip: response length {start:.0f} → {low:.0f} (step {step:g}) → {end:.0f} tokens; {told}."


def figure(run: History) -> Figure:
    """Length above, shares of the three ways to answer below."""
    fig, (above, below) = canvas([run], sentence(run), 2, 2)
    draw_series(above, run, "tokens", COLORS[1])
    above.set(title="Response length", ylabel="tokens", xlabel="")
    x, parts = ways(run)
    below.stackplot(x, parts, colors=WAYS.values(), lw=0)
    below.set(title="What the responses do", ylabel="share of responses", ylim=(0, 1))
    in_percent(below)
    handles = [Patch(color=color, label=label) for label, color in WAYS.items()]
    below.legend(handles=handles, ncols=3, **ABOVE_AXIS).set_in_layout(False)
    for ax in (above, below) if sentence(run).startswith("The dip") else ():
        ax.axvline(turns(run)[1][0], color=GREY, lw=1.6, ls=DOTTED)
    if len(run.series("tokens")[0]):
        above.set_ylim(0)
    return fig


def write(folder: Path, out: Path | None = None) -> str:
    """Draw it; returns the dip in words and where. Errors: NotARun."""
    run = load_run(folder)
    out = out or run.path / "plots"
    save(figure(run), out, "dip")
    return f"{sentence(run)}\n{out}/dip.png and .pdf"
