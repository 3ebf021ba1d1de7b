"""The dip: do responses first get shorter, because writing code goes before searching comes?

    python plots/dip.py runs/mini-dip       # runs/mini-dip/plots/dip.{png,pdf}, and the dip in words

SimpleRL (hkust-nlp.notion.site/simplerl-reason) saw the length fall, then grow, and laid it to the base
model's habit of writing code, which went before reflection came.
Here that explanation stands under the length.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, too
from plots.curves import COLORS, GREY, NotARun, Run, canvas, draw_series, load_run, save, smooth

SHALLOW = 0.9  # a dip goes below this share of the base's length
RARE = 0.01  # share of responses that write code, below which a run is not about code
WAYS = {"write code": COLORS[4], "guess": "#bbbbbb", "search": COLORS[0]}


def concerns(folder: Path) -> bool:
    """Whether the run's responses ever wrote code to speak of."""
    return max(load_run(folder).series("code_share")[1], default=0.0) > RARE


def ways(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and smoothed shares (3,n) of the training responses, in the order of WAYS. What neither
    writes code nor searches guesses; what does both counts twice, at the cost of guessing.
    """
    rows = {key: dict(zip(*(v.tolist() for v in run.series(key)))) for key in ("code_share", "search_share")}
    x = np.array(sorted(rows["code_share"].keys() & rows["search_share"].keys()))
    code, search = (smooth(x, np.array([values[step] for step in x])) for values in rows.values())
    return x, np.stack([code, 1 - code - search, search]).clip(0, 1)


def turns(run: Run) -> list[tuple[float, float]]:
    """(step, smoothed length) of training at its start, where it is shortest, and at its end; [] without."""
    x, y = run.series("tokens")
    y = smooth(x, y)
    return [(x[i], y[i]) for i in (0, y.argmin(), -1)] if len(x) else []


def sentence(run: Run) -> str:
    if not (found := turns(run)):
        return "No dip yet: it takes a step of training."
    (_, start), (step, low), (last, end) = found
    x, (code, _, _) = ways(run)
    wrote = lambda at: f"{code[np.abs(x - at).argmin()]:.0%}"
    told = (
        f"code in {wrote(found[0][0])} → {wrote(step)} → {wrote(last)} of them"
        if len(x)
        else "code not counted"
    )
    if low > SHALLOW * start or step == last:
        return f"No dip: response length {start:.0f} → {end:.0f} tokens, at the shortest {low:.0f}; {told}."
    return f"The dip: response length {start:.0f} → {low:.0f} (step {step:g}) → {end:.0f} tokens; {told}."


def figure(run: Run) -> Figure:
    """Length above, shares of the three ways to answer below."""
    fig, (above, below) = canvas([run], sentence(run), 2, 2)
    draw_series(above, run, "tokens", COLORS[1])
    above.set(title="Response length", ylabel="tokens", xlabel="")
    x, parts = ways(run)
    below.stackplot(x, parts, colors=WAYS.values(), lw=0)
    below.set(title="What the responses do", ylabel="share of responses", ylim=(0, 1))
    below.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.6g}%")
    handles = [Patch(color=color, label=label) for label, color in WAYS.items()]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3, "borderpad": 0}
    below.legend(handles=handles, ncols=3, **place).set_in_layout(False)
    for ax in (above, below) if sentence(run).startswith("The dip") else ():
        ax.axvline(turns(run)[1][0], color=GREY, lw=1.6, ls=(0, (1, 1.2)))
    if len(run.series("tokens")[0]):
        above.set_ylim(0)
    return fig


def write(folder: Path, out: Path | None = None) -> str:
    """Draw it; returns the dip in words and where. Errors: NotARun."""
    run = load_run(folder)
    save(figure(run), out or run.path / "plots", "dip")
    return f"{sentence(run)}\n{out or run.path / 'plots'}/dip.png and .pdf"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="folder of the figure (default: plots/ of the run)")
    args = parser.parse_args(argv)
    try:
        print(write(args.run, args.out))
    except (NotARun, OSError) as error:
        print(f"Nothing drawn: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
