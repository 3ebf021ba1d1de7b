"""Did reasoning emerge? Behaviours measured from the text of a run's samples, and the questions that decide.

    python tinyr1.py plot aha runs/mini                    # runs/mini/plots/aha.{png,pdf}, and in words
    python tinyr1.py plot aha answers.jsonl --field text   # samples from elsewhere: what they do, as a table

The *aha step* is the first evaluation at which the held-out responses show more of a behaviour than the base
model's, problem by problem, by a margin that chance does not explain over all that was looked at: aha_steps.

Whether reflecting helps is measured within problems: hard ones may well invite more of it. A check that is
forced on wrong guesses tells more; the same command then shows it:

    python tinyr1.py reflect runs/mini

pass@k for k up to 64, and how many problems the trained model solves that the base never does, from many
samples of each model:

    python tinyr1.py eval runs/mini --eval_samples 256 --name trained
    python tinyr1.py eval runs/mini --eval_samples 256 --name base --model minibase
    python tinyr1.py plot aha runs/mini --base runs/eval-base --trained runs/eval-trained
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from plots.behaviours import (
    evaluations,
    measure_samples,
    per_problem,
    problem_key,
    read_rows,
    run_samples,
    searches,
    value_of,
)
from plots.charts import FACTS, GREY, Chart, Series, draw_chart, put_title, save, wrap
from plots.reflection import BOUNDS, forced, forced_in_words, gain_within_problems, in_words, interval
from plots.runs import History, NotARun, load_run, number
from plots.statistics import (
    NO_INTERVAL,
    bootstrap,
    bootstrap_ratio,
    clustered,
    paired,
    pass_at_k,
    student,
    wilson,
)
from plots.summary import options

# ---------------------------------------------------------------- the aha step

GAINS = {
    "attempts": "attempts", "checks": "checks", "backtracks": "backtracks", "repeats": "repeats",
    "decomposes": "decompositions", "steps": "decomposition steps", "oat": "Oat-Zero words",
    "simplerl": "SimpleRL words",
}  # fmt: skip
# what would be an aha moment
AHA = [key for key in GAINS if key not in ("repeats", "simplerl")]
# gain per response that an aha moment exceeds: broken texts look like backtracks now and then
MARGIN = 0.1


@dataclass
class Aha:
    """First evaluation at which a behaviour exceeds the base model's. `low`: simultaneous 95 % bound of the
    gain.
    """

    step: float
    behaviour: str
    base: float
    now: float
    low: float
    problems: int


def aha_steps(evals: dict, behaviours=AHA) -> dict[str, Aha]:
    """{behaviour: its Aha} for those that ever exceed the base by more than MARGIN.

    Mean difference, paired by problem, against its lower 95 % bound by Student's t, one-sided, by Bonferroni
    for all evaluations and behaviours at once; at least 8 problems.
    """
    steps = list(evals)
    base = {key: per_problem(evals[steps[0]], key) for key in behaviours} if steps else {}
    base = {key: values for key, values in base.items() if values}
    tests, found = max(len(base) * (len(steps) - 1), 1), {}
    for key, before in base.items():
        for step in steps[1:]:
            now = per_problem(evals[step], key)
            gain = paired(before, now)
            if len(gain) < 8:
                continue
            t = student(1 - 0.05 / tests, len(gain) - 1)
            low = gain.mean() - t * gain.std(ddof=1) / math.sqrt(len(gain))
            if low > MARGIN:
                common = [name for name in now if name in before]
                means = [float(np.mean([side[name] for name in common])) for side in (before, now)]
                found[key] = Aha(step, key, *means, float(low), len(gain))
                break
    return found


def first_aha(found: dict[str, Aha]) -> Aha | None:
    return min(found.values(), key=lambda aha: (aha.step, AHA.index(aha.behaviour)), default=None)


def best_sample(evals: dict, step: float) -> dict | None:
    """The response of this evaluation that shows the moment best: right where the base was wrong, its answer
    the fruit of an attempt after others, nothing wrong on the way, and short enough to be read.
    """
    base = next(iter(evals.values()))
    found = []
    for name, samples in evals.get(step, {}).items():
        solved = any(sample.get("correct") for sample in base.get(name, ()))
        for sample in samples:
            if sample.get("correct") and sample["does"]["reflects"]:
                found.append(((solved, *flaws(sample)), len(found), sample))
    return min(found)[-1] if found else None


def flaws(sample: dict) -> tuple:
    """What speaks against showing a response, the gravest first: smaller is better."""
    does = sample["does"]
    wrong_verdicts = does.get("checks", 0) - does.get("verdicts_right", 0)
    errors = does.get("repeats", 0) + does["wrong_equations"] + wrong_verdicts
    turns = does.get("backtracks", does.get("steps", 0)) + does["oat"]
    return not does.get("from_success", 1), errors, abs(turns - 4), len(sample["completion"])


def sentence(evals: dict) -> str:
    """The aha step in words, or that there was none; and whether responses that reflect are right."""
    return " ".join(filter(None, [aha_in_words(evals), gain_in_words(evals)]))


def gain_in_words(evals: dict) -> str:
    told = []
    for name, step in first_and_last(evals).items():
        if len(gain := gain_within_problems(evals[step])):
            told.append(f"{in_words(interval(gain), signed=True)} problems ({name})")
    if not told:
        return ""
    return (
        f"Within a problem, P(right | reflects) − P(right | does not), in points [95 %]: {', '.join(told)}."
    )


def aha_in_words(evals: dict) -> str:
    steps = list(evals)
    if len(steps) < 2:
        return "No aha step yet: it takes a held-out evaluation of the base model and one after it."
    aha = first_aha(aha_steps(evals))
    if not aha:
        n, told = len(steps) - 1, "at the one evaluation after the base model's no behaviour exceeded it"
        if n > 1:
            told = f"at none of the {n} evaluations after the base model's did a behaviour exceed it"
        return (
            f"There was no aha moment: {told} by {MARGIN} per response beyond what chance explains "
            f"({len(evals[steps[0]])} held-out problems)."
        )
    text = (
        f"Aha step {aha.step:g}: {GAINS[aha.behaviour]} per response {aha.base:.2f} → {aha.now:.2f} on "
        f"{aha.problems} held-out problems (a gain of at least {aha.low:.2f}, with 95 % confidence over all "
        "evaluations and behaviours)"
    )
    if aha.step == steps[1]:
        text += ", at the first evaluation after the base model's"
    first, last = (share_that_reflects(evals[step]) for step in (steps[0], steps[-1]))
    return f"{text}. Responses that reflect: {first:.0%} of the base model's, {last:.0%} at the end."


def share_that_reflects(problems: dict[str, list[dict]]) -> float:
    return np.mean([sample["does"]["reflects"] for samples in problems.values() for sample in samples])


# ---------------------------------------------------------------- the panels


def gains(evals: dict) -> Chart:
    chart = Chart("What responses do more of", "gain per response")
    steps = list(evals)
    for color, (key, label) in enumerate(GAINS.items()):
        base = per_problem(evals[steps[0]], key) if steps else {}
        rows = [(step, paired(base, per_problem(evals[step], key))) for step in steps]
        points = []
        for step, gain in rows:
            if len(gain):
                points.append([step, *(bootstrap(gain) if step != steps[0] else (0.0, *NO_INTERVAL))])
        if any(gain.any() for _, gain in rows):
            chart.series.append(Series(label, color, points))
    aha = first_aha(aha_steps(evals))
    chart.mark = aha.step if aha else None
    chart.note = "0: the base model. 95 % bootstrap intervals over problems, paired, each on its own" + (
        "; dotted: the aha step, tested over all jointly." if aha else "."
    )
    if evals and not chart.series:
        chart.note = "Nothing that is counted ever differed from the base model."
    return chart


WILSON = "95 % Wilson intervals, wider for samples of one problem."


def usefulness(evals: dict, folder: Path) -> Chart:
    chart = Chart("Does reflecting help?", "gain in right responses", share=True)
    points = []
    for step, problems in evals.items():
        if len(gain := gain_within_problems(problems)):
            points.append([step, *bootstrap(gain)])
    chart.series.append(Series("reflects − not", 0, points))
    steps = first_and_last(evals)
    rows = {"forced_minus_unforced": "forced − not", "forced_minus_new": "forced − new"}
    for color, (row, label) in enumerate(rows.items(), 1):
        found = forced(folder, row).items()
        points = [[steps[name], *map(bounds.get, BOUNDS)] for name, bounds in found if name in steps]
        chart.series.append(Series(label, color, points))
    chart.note = "Within a problem that has both; 95 % bootstrap intervals over problems."
    if not any(series.points for series in chart.series):
        chart.note = "Known when a problem has both a response that reflects and one that does not."
    elif chart.series[1].points:
        chart.note += " Forced: a failed check on a wrong guess of the base."
    return chart


def by_length(evals: dict) -> Chart:
    chart = Chart("Accuracy by length, one checkpoint", "share that is right", x="tokens", share=True)
    for color, (name, step) in enumerate(first_and_last(evals).items()):
        points = quarters_of_length([*evals[step].values()])
        chart.series.append(Series(f"{name}, step {step:g}", color, points))
    chart.note = f"Quarters of length. {WILSON}"
    if searches(evals):
        chart.note += " A search ends with success: the longest had none."
    return chart


def first_and_last(evals: dict) -> dict[str, float]:
    """{base, trained: step} of the first and the last evaluation; the base alone where there is one."""
    steps = list(evals)
    return dict(zip(("base", "trained"), dict.fromkeys(steps[:1] + steps[-1:])))


def quarters_of_length(groups: list[list[dict]]) -> list[list[float]]:
    """[mean length, accuracy, low, high] of each quarter of the samples; one group per problem."""
    known = []
    for samples in groups:
        pairs = [(value_of(sample, "tokens"), bool(sample.get("correct"))) for sample in samples]
        known.append([(tokens, right) for tokens, right in pairs if math.isfinite(tokens)])
    every = [tokens for pairs in known for tokens, _ in pairs]
    edges = np.unique(np.quantile(every, (0.25, 0.5, 0.75))) if every else []
    points = []
    for low, high in zip([-math.inf, *edges], [*edges, math.inf]):
        part = [[(tokens, right) for tokens, right in pairs if low < tokens <= high] for pairs in known]
        if any(part):
            mean = float(np.mean([tokens for pairs in part for tokens, _ in pairs]))
            points.append([mean, *clustered([[right for _, right in pairs] for pairs in part])])
    return points


OUTCOMES = {  # of a sample -> key of its length in metrics.jsonl, color, whether a sample has it
    "right": ("tokens_correct", 2, lambda sample: sample.get("correct")),
    "wrong": ("tokens_wrong", 1, lambda sample: not sample.get("correct") and sample.get("finished", True)),
    "cut off": ("tokens_cut", 3, lambda sample: not sample.get("finished", True)),
}


def lengths(evals: dict, run: History) -> Chart:
    chart = Chart("Length by outcome", "tokens")
    for name, (key, color, wanted) in OUTCOMES.items():
        points = []
        for step, problems in evals.items():
            chosen = {problem: list(filter(wanted, samples)) for problem, samples in problems.items()}
            if values := [*per_problem(chosen, "tokens").values()]:
                points.append([step, *bootstrap(values)])
        x, y = run.series(key)
        if points or len(x):
            training = [[*point, *NO_INTERVAL] for point in zip(x.tolist(), y.tolist())]
            chart.series += [Series(name, color, training, "faint"), Series(name, color, points)]
    chart.note = "Held-out responses; 95 % bootstrap intervals over problems. Faint: training."
    return chart


RATIOS = {  # label -> numerator and denominator, from what a response does
    "equations": lambda does: (does["equations"] - does["wrong_equations"], does["equations"]),
    "verdicts": lambda does: (does.get("verdicts_right", 0), does.get("checks", 0)),
    "answers": lambda does: (does.get("from_success", 0), "from_success" in does),
    "repeats": lambda does: (does.get("repeats", 0), does.get("attempts", 0)),
    "code": lambda does: (does["code"], 1),
    "mixed languages": lambda does: (does["mixed"], 1),
}


def soundness(evals: dict) -> Chart:
    chart = Chart("Is the reasoning sound?", "share of each", share=True)
    for color, (label, ratio) in enumerate(RATIOS.items()):
        points = []
        for step, problems in evals.items():
            parts = [[ratio(sample["does"]) for sample in samples] for samples in problems.values()]
            sums = np.array([np.sum(samples, axis=0) for samples in parts], float)
            if len(sums) and sums[:, 1].sum():
                points.append([step, *bootstrap_ratio(sums)])
        if color < 4 and points or any(point[1] for point in points):
            chart.series.append(Series(label, color, points))
    chart.note = "Equations that hold"
    if searches(evals):
        chart.note += ", right verdicts, answers that copy a success, attempts that repeat another"
    chart.note += ". 95 % bootstrap intervals over problems."
    return chart


def coverage(evals: dict, run: History, sides: list | None = None) -> Chart:
    """pass@k of base against trained; sides: [(name, {problem: samples})] instead of the run's own."""
    chart = Chart("Does RL only sharpen? pass@k", "problems solved", x="samples k", share=True, log_x=True)
    own = [(name, evals[step]) for name, step in first_and_last(evals).items()]
    largest = 1
    for color, (name, problems) in enumerate(sides or own):
        counts = [
            (len(samples), sum(bool(sample.get("correct")) for sample in samples))
            for samples in problems.values()
        ]
        fewest = min((n for n, _ in counts), default=0)
        largest = max(largest, fewest)
        points = []
        for k in (1, 2, 4, 8, 16, 32, 64):
            if k <= fewest:
                points.append([k, *bootstrap([pass_at_k(n, right, k) for n, right in counts], share=True)])
        chart.series.append(Series(name, color, points))
    if largest > 1:
        chart.note = "Unbiased estimate, 95 % bootstrap intervals over problems."
        if not sides:
            chart.note += " For k up to 64: plot aha --help."
        return chart
    chart.series = coverage_of_summary(run)
    chart.note = (
        "From the run's summary, with an interval for k = 1 alone: one sample per problem was kept. "
        "For k up to 64: plot aha --help."
    )
    if not any(series.points for series in chart.series):
        chart.note = "Known when the run has finished."
    return chart


def coverage_of_summary(run: History) -> list[Series]:
    """pass@k as the run's summary tells it, for a run that kept one sample per problem."""
    found = []
    for color, name in enumerate(("base", "trained")):
        side = run.summary.get(name) or {}
        keys = [key for key in side if re.fullmatch(r"pass@[0-9]+", key)]
        ks = sorted(int(key[5:]) for key in keys if math.isfinite(number(side[key])))
        points = [[k, side[f"pass@{k}"], *NO_INTERVAL] for k in ks]
        interval = side.get("accuracy_ci")
        if points and isinstance(interval, list) and len(interval) == 2:
            points[0][2:] = map(number, interval)
        found.append(Series(name, color, points))
    return found


def charts(run: History, samples: list[dict], sides: list | None = None) -> list[Chart]:
    """The six panels; points that are not finite are left out."""
    evals = evaluations(samples)
    found = [gains(evals), usefulness(evals, run.path), soundness(evals), by_length(evals)]
    found += [lengths(evals, run), coverage(evals, run, sides)]
    for chart in found:
        for series in chart.series:
            points = [[finite_or_none(value) for value in point] for point in series.points]
            series.points = [point for point in points if point[0] is not None and point[1] is not None]
        chart.series = [series for series in chart.series if series.points]
    return found


def finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ---------------------------------------------------------------- the figure


def figure(run: History, samples: list[dict], sides: list | None = None) -> Figure:
    """Six panels, 16:9: what grew, whether it helps, whether it is sound, and length and pass@k."""
    fig = Figure(figsize=(16, 9), layout="constrained")
    fig.get_layout_engine().set(rect=(0.005, 0.005, 0.99, 0.86), w_pad=0.1, h_pad=0.12)
    config = run.config
    facts = [
        Path(str(config.get("model", ""))).name,
        Path(str(config.get("task", ""))).stem,
        config.get("algo"),
        run.name,
        *options(run.differences, hidden=FACTS[:3]),
    ]
    title = "Did reasoning emerge?   " + " · ".join(str(fact) for fact in facts if fact)
    put_title(fig, title, 0.95)
    fig.text(0.012, 0.935, wrap(sentence(evaluations(samples)), 150), fontsize=13, color=GREY, va="top")
    for ax, chart in zip(fig.subplots(2, 3).flatten(), charts(run, samples, sides)):
        draw_chart(chart, ax)
    return fig


def sides_of(paths: Mapping[str, Path | None], task: str) -> list | None:
    """[(name, {problem: samples})] of the eval_samples.jsonl files or their folders that are given, of this
    task alone; of a sample, only whether it is `correct`. Errors: NotARun.
    """
    sides = []
    for name, path in paths.items():
        if path:
            sets = defaultdict(lambda: defaultdict(list))
            for row in read_rows(path / "eval_samples.jsonl" if path.is_dir() else path, "completion"):
                kind = str(row.get("task", task))
                if kind.split(":")[0] == task and not kind.endswith("(greedy)"):
                    # whole rows of 256 samples per problem would take a gigabyte
                    sets[kind][problem_key(row)].append({"correct": bool(row.get("correct"))})
            if len(sets) != 1:
                raise NotARun(
                    f"{path} holds {len(sets)} sets of {task} problems, and one is needed: give what "
                    "`python tinyr1.py eval ... --eval_samples 64` wrote."
                )
            sides.append((name, *sets.values()))
    return sides or None


# ---------------------------------------------------------------- what it says


# whether a problem is ever solved (by the base, by the trained model)
EVER_SOLVED = {
    "trained only": (False, True), "base only": (True, False),
    "both": (True, True), "neither": (False, False),
}  # fmt: skip


def solved(sides: list) -> str:
    """Of the problems that the evaluations of both models have: how many each of them ever solves, in words
    and as a table; "" without both.
    """
    found = dict(sides)
    if set(found) != {"base", "trained"}:
        return ""
    base, trained = found["base"], found["trained"]
    common = [name for name in trained if name in base]
    if not common:
        return "The evaluations of the base and of the trained model have no problem in common."
    counts = count_solved(base, trained, common)
    samples = " and ".join(f"{samples_per_problem(side)} of the {name} model" for name, side in sides)
    lines = [
        f"Of {len(common)} problems, the trained model solves {counts['trained only']} at least once that "
        f"the base never solves, and the base {counts['base only']} that the trained model never solves "
        f"(samples per problem: {samples}).\n",
        "| solved at least once by | problems | share | 95 % Wilson interval |",
        "|---|---|---|---|",
    ]
    for kind, count in counts.items():
        share, low, high = wilson(count, len(common))
        lines.append(f"| {kind} | {count} | {share:.1%} | {low:.1%} … {high:.1%} |")
    return "\n".join(lines)


def count_solved(base: dict, trained: dict, names: list[str]) -> dict[str, int]:
    """{kind of EVER_SOLVED: how many of these problems}."""
    ever = [tuple(any(row["correct"] for row in side[name]) for side in (base, trained)) for name in names]
    return {kind: ever.count(pair) for kind, pair in EVER_SOLVED.items()}


def samples_per_problem(problems: dict[str, list]) -> str:
    counts = sorted({len(samples) for samples in problems.values()})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def write(
    folder: Path, out: Path | None = None, base: Path | None = None, trained: Path | None = None
) -> str:
    """Draw the figure; returns the aha step in words, its best sample, and where the figure is."""
    run, samples = load_run(folder), run_samples(folder)
    sides = sides_of({"base": base, "trained": trained}, run.config.get("task"))
    out = out or run.path / "plots"
    save(figure(run, samples, sides), out, "aha")
    evals = evaluations(samples)
    told = [sentence(evals)]
    if (aha := first_aha(aha_steps(evals))) and (sample := best_sample(evals, aha.step)):
        told.append(f"\n{str(sample.get('prompt', '')).strip()}\n{sample['completion'].strip()}\n")
    told += [forced_in_words(run.path), solved(sides) if sides else ""]
    return "\n".join([*filter(None, told), f"{out}/aha.png and .pdf"])


# ---------------------------------------------------------------- samples from elsewhere


def table_of(path: Path, field: str) -> str:
    """What the samples of a JSONL file do, as a table; field: the key of the text. Errors: NotARun."""
    if not (samples := measure_samples(path, field)):
        raise NotARun(f"{path} holds no row with a text under {field!r}: give its key with --field.")
    return table(samples)


def table(samples: list[dict]) -> str:
    """Means of what the samples do, with bootstrap intervals over problems; Markdown."""
    problems = defaultdict(list)
    for sample in samples:
        problems[sample["key"]].append(sample)
    keys = dict.fromkeys(key for sample in samples for key in sample["does"])
    lines = [
        f"| mean of {len(samples)} responses to {len(problems)} problems | per response | 95 % interval |",
        "|---|---|---|",
    ]
    for key in keys:
        mean, low, high = bootstrap([*per_problem(problems, key).values()])
        lines.append(f"| {key} | {mean:.3f} | " + (f"{low:.3f} … {high:.3f} |" if low is not None else "– |"))
    return "\n".join(lines)
