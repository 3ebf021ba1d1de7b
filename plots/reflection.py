"""Does reflecting lead to right answers? Differences within a problem, and what `tinyr1.py reflect` found."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from plots.behaviours import per_problem
from plots.runs import read_dict
from plots.statistics import bootstrap, paired

# {problem: its samples}
Samples = dict[str, list[dict]]
BOUNDS = ("mean", "low", "high")

# ---------------------------------------------------------------- figures, each over problems


def interval(values, share: bool = False) -> dict:
    """The mean of one value per problem, with its 95 % interval."""
    found = bootstrap(values, share) if len(values) else (None, None, None)
    return {**dict(zip(BOUNDS, found)), "problems": len(values)}


def gain_within_problems(problems: Samples) -> np.ndarray:
    """Share of right responses among those that reflect minus that among the others, of each problem that has
    both. So a problem is compared with itself: hard ones may well invite more reflection.
    """
    halves: tuple = (defaultdict(list), defaultdict(list))
    for name, samples in problems.items():
        for sample in samples:
            halves[bool(sample["does"]["reflects"])][name].append(sample)
    others, reflecting = (per_problem(half, "correct") for half in halves)
    return paired(others, reflecting)


def effects(arms: dict[str, Samples], among: set[str]) -> dict[str, dict]:
    """{figure of LEVELS and GAINS: its interval} over these problems. Arms: the first `answers`, `new` ones,
    and the continuations of wrong guesses, `forced` and `unforced`.
    """
    own = {arm: {name: rows for name, rows in found.items() if name in among} for arm, found in arms.items()}
    right = {arm: per_problem(samples, "correct") for arm, samples in own.items()}
    right["new"] = {name: share for name, share in right["new"].items() if name in right["forced"]}
    found = {arm: interval([*right[arm].values()], share=True) for arm in ("forced", "unforced", "new")}
    return found | {
        "unforced_reflects": interval([*per_problem(own["unforced"], "reflects").values()], share=True),
        "forced_minus_unforced": interval(paired(right["unforced"], right["forced"])),
        "forced_minus_new": interval(paired(right["new"], right["forced"])),
        "spontaneous": interval(gain_within_problems(own["answers"])),
    }


# ---------------------------------------------------------------- in words

LEVELS = {
    "forced": "right after a forced check", "unforced": "right without it",
    "unforced_reflects": "reflects without it", "new": "right in new responses",
}  # fmt: skip
GAINS = {
    "forced_minus_unforced": "forced check − none", "forced_minus_new": "forced check − new responses",
    "spontaneous": "reflects by itself − does not",
}  # fmt: skip
COLUMNS = {"all": "all problems", "uncertain": "least certain 20 %", "certain": "the others"}


def in_words(found: dict, signed: bool) -> str:
    """A figure in per cent (signed: in percentage points) with its interval and the number of problems."""
    form = "{:+.1f}" if signed else "{:.1f}"
    if found["mean"] is None:
        return "-"
    bounds = [form.format(100 * found[key]) for key in ("low", "high") if found[key] is not None]
    shown = f" [{', '.join(bounds)}]" if bounds else ""
    return f"{form.format(100 * found['mean'])}{shown} of {found['problems']}"


def table(side: dict) -> str:
    """What was found of one model; figures that nothing is known of are left out."""
    lines = [f"{'% of responses [95 %] of problems':36}" + "".join(f"{name:28}" for name in COLUMNS.values())]
    for row, label in (LEVELS | GAINS).items():
        cells = [in_words(side[column][row], row in GAINS) for column in COLUMNS]
        if set(cells) != {"-"}:
            lines.append(f"{label:36}" + "".join(f"{cell:28}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


# ---------------------------------------------------------------- of runs

# model -> its side of reflect.json: both models continue the base's wrong guesses
SIDES = {"base": "base", "trained": "trained_from_base"}


def forced(folder: Path, row: str, column: str = "all") -> dict[str, dict]:
    """{model: this figure of RUN/reflect.json}, as far as it is known."""
    sides = read_dict(folder / "reflect.json").get("sides", {})
    found = {name: sides[side][column][row] for name, side in SIDES.items() if side in sides}
    return {name: figure for name, figure in found.items() if figure["problems"]}


def forced_in_words(folder: Path) -> str:
    """What a forced check does, from RUN/reflect.json; "" without it."""
    lines = []
    for row, against in (("forced_minus_unforced", "none"), ("forced_minus_new", "new responses")):
        for column, label in COLUMNS.items():
            figures = forced(folder, row, column).items()
            told = [f"{in_words(figure, signed=True)} problems ({name})" for name, figure in figures]
            lines += [f"  against {against}, {label}: {', '.join(told)}"] if told else []
    head = (
        "Right responses after a failed check that is forced on the base's wrong guesses, in points [95 %]:"
    )
    return "\n".join([head, *lines]) if lines else ""


def table_of_seeds(folders: list[Path]) -> str:
    """What `reflect` found of these runs, one row per model and run; Markdown."""
    lines = []
    for column, label in COLUMNS.items():
        rows = GAINS if lines else LEVELS | GAINS
        lines.append(f"| {label}: % of responses [95 %] of problems | {' | '.join(rows.values())} |")
        lines.append("|---" * (len(rows) + 1) + "|")
        for name, side in SIDES.items():
            for folder in folders:
                figures = read_dict(folder / "reflect.json")["sides"][side][column]
                cells = [in_words(figures[row], row in GAINS) for row in rows]
                lines.append(f"| {name}, {folder.name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()
