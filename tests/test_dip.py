"""plots/dip.py: the dip in words and in the figure, on made-up runs."""

import numpy as np
import pytest
from test_plots import ODD, make, quick  # noqa: F401  (the last two are fixtures)

from commands import plot
from plots import dip
from plots.runs import load_run


def rows_of(tokens, code, search):
    rows = [{"step": 0, "eval/tokens": tokens[0], "eval/accuracy": 0.1}]
    for step, values in enumerate(zip(tokens, code, search), 1):
        rows.append(
            {"step": step, "reward": 0.0} | dict(zip(("tokens", "code_share", "search_share"), values))
        )
    return rows


TIME = np.linspace(0, 1, 41)
CODE, SEARCH = 0.3 * np.exp(-TIME / 0.08), 0.3 + 0.6 * TIME
DIPS = rows_of(25 + 230 * CODE + 100 * np.maximum(SEARCH - 0.4, 0), CODE, SEARCH)


def test_a_dip_is_told(make):  # noqa: F811
    run = load_run(make(DIPS))
    told = dip.sentence(run)
    assert told.startswith("The dip: response length 9") and "code in 2" in told
    (_, start), (step, low), (last, end) = dip.turns(run)
    assert 1 < step < last == 41 and low < 0.5 * start and end > low + 30
    x, parts = dip.ways(run)
    assert np.allclose(parts.sum(0), 1, atol=1e-6) and parts[0, 0] > 0.25 and parts[0, -1] < 0.01
    above, below = dip.figure(run).axes[:2]
    assert len(below.collections) == 3 and above.get_ylim()[0] == 0


def test_no_dip_is_told(make):  # noqa: F811
    flat = [0.0] * 41
    grows = load_run(make(rows_of(30 + 90 * TIME, flat, SEARCH), "grows"))
    assert dip.sentence(grows).startswith("No dip: response length 3") and not dip.concerns(grows.path)
    falls = load_run(make(rows_of(90 - 60 * TIME, CODE, SEARCH), "falls"))
    assert dip.sentence(falls).startswith("No dip: ") and dip.concerns(falls.path)


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_are_drawn(make, name, quick):  # noqa: F811
    rows, tail = ODD[name]
    folder = make(rows, tail=tail)
    assert plot.main(["dip", str(folder)]) == 0
    assert (folder / "plots/dip.png").exists() and (folder / "plots/dip.pdf").exists()


def test_a_run_in_progress_is_drawn_whole(make):  # noqa: F811
    folder = make(DIPS[:30], tail='{"step": 42, "tok')
    assert plot.main(["dip", str(folder)]) == 0
    assert all((folder / f"plots/dip{kind}").stat().st_size > 10_000 for kind in (".png", ".pdf"))
