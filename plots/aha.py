"""Did reasoning emerge? Behaviours measured from the text of a run's samples, and the questions that decide.

    python plots/aha.py runs/mini                       # runs/mini/plots/aha.{png,pdf}; the aha step in words
    python plots/aha.py answers.jsonl --field text      # samples from elsewhere: what they do, as a table

The *aha step* is the first evaluation at which the held-out responses show more of a behaviour than the base
model's, problem by problem, by a margin that chance does not explain over all that was looked at: aha_steps.

pass@k for k up to 64, from as many samples of each model:

    python tinyr1.py eval runs/mini --eval_samples 64 --name trained
    python tinyr1.py eval runs/mini --eval_samples 64 --name base --model minibase
    python plots/aha.py runs/mini --base runs/eval-base --trained runs/eval-trained
"""

import argparse
import json
import math
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from math import comb
from pathlib import Path
from statistics import NormalDist

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, too
from plots.curves import COLORS, FACTS, GREY, STYLES, NotARun, Run, load_run, number, put_title, save
from plots.intervals import wilson
from plots.summary import options
from tasks import _attempts

# ---------------------------------------------------------------- behaviours of one response

# Words that announce self-reflection. English: as published. Chinese: ours, the sources have none.
KEYWORDS = {
    # sail-sg/understand-r1-zero, analysis/keyword_count.py (2503.20783, "Oat-Zero")
    "oat": "recheck rethink reassess reevaluate re-evaluate reevaluation re-examine reexamine reconsider "
    "reanalyze double-check check_again think_again verify_again go_over_the_steps "
    "重新检查 再检查 重新思考 再想想 重新评估 重新考虑 重新审视 再验证 再核对",
    # SimpleRL-Zoo's authors (2503.18892), as their 2505.15612 uses them: 2502.03373's five words and two more
    "simplerl": "recheck rethink try_again wait alternatively retry however 再试 等等 等一下 或者 然而 但是",
}


def pool(words: str) -> re.Pattern:
    """Any of the words, of which `_` joins several; whole words where a script has them."""
    words = words.split()
    latin = "|".join(re.escape(word).replace("_", r"\s") for word in words if word.isascii())
    return re.compile("|".join([rf"\b(?:{latin})\b", *(word for word in words if not word.isascii())]))


POOLS = {name: pool(words) for name, words in KEYWORDS.items()}
SCRIPTS = [re.compile(f"[{letters}]") for letters in (
    "A-Za-zÀ-ɏ", "Ͱ-Ͽ", "Ѐ-ӿ", "֐-׿", "؀-ۿ", "ऀ-ॿ", "฀-๿", "぀-ヿ㐀-䶿一-鿿", "가-힣")]  # fmt: skip
TAGS = re.compile(r"</?\w+>|\\[a-z]+")
MIXED = 0.05  # share of a response's letters from which on a second script counts as mixing


def find_words(text: str) -> dict[str, list[tuple[int, int]]]:
    """{pool: spans of its words in the text}."""
    small = text.lower()  # far faster than a pattern that ignores case
    small = small if len(small) == len(text) else text
    return {name: [word.span() for word in words.finditer(small)] for name, words in POOLS.items()}


def measure(text: str, example: dict, reading, words: dict) -> dict[str, float]:
    """What a response does; a key that does not apply to it is left out. reading: tasks._attempts.read's,
    None if it is not Countdown; words: find_words'.

    Of Countdown (`nums` and `target` in the example): attempts, checks, backtracks (attempts left for another
    one), repeats (combinations tried before), equations, wrong_equations, verdicts_right, from_success (the
    answer copies an attempt that came to the target). Of other tasks: equations, wrong_equations, and steps,
    the equations that are more than a product stated at once. Of all: oat and simplerl (words of KEYWORDS),
    code and mixed (1.0 if it writes code, if it mixes scripts), reflects (1.0 if it checks, backtracks,
    decomposes or says one of oat's words).
    """
    found = {name: len(spans) for name, spans in words.items()}
    if reading:
        target, equations, checks = example["target"], reading.equations, reading.checks
        found |= {"attempts": len(reading.attempts), "checks": len(checks)}
        found["backtracks"] = sum(_attempts.abandoned(reading, target))
        found["repeats"] = sum(_attempts.repeats(reading))
        found["verdicts_right"] = sum(check.right for check in checks)
        if (source := _attempts.source_of_answer(text, reading, target)) and reading.attempts:
            found["from_success"] = source == "reached"
        reflects = checks or found["backtracks"]
    else:
        equations = _attempts.equations(text)
        found["steps"] = reflects = sum(not at_once(equation, example) for equation in equations)
    found |= {"equations": len(equations), "wrong_equations": sum(not e.holds for e in equations)}
    found["reflects"] = bool(reflects or found["oat"])
    found |= {"code": bool(_attempts.CODE.search(text)), "mixed": mixes(text)}
    return {key: float(value) for key, value in found.items()}


def mixes(text: str) -> bool:
    """Whether a second script has a share of the letters; tags and LaTeX commands do not count."""
    if text.isascii():
        return False
    plain = TAGS.sub("", text)
    letters = sorted(len(script.findall(plain)) for script in SCRIPTS)
    return letters[-2] > MIXED * sum(letters)


def countdown_like(example: dict) -> bool:
    nums, target = example.get("nums"), example.get("target")
    return isinstance(nums, list) and all(type(n) is int for n in nums) and type(target) is int


def at_once(equation, example: dict) -> bool:
    """Whether it is the problem's own product, stated."""
    factors = sorted(n for n in example.values() if type(n) is int)
    return sorted(equation.operands) == factors and len(equation.operations) == 1


# ---------------------------------------------------------------- samples


def read_samples(path: Path, field: str = "completion") -> list[dict]:
    """Rows of a JSONL file whose `field` is a text; [] without a file. Added: `key` of the problem, `reading`
    (None if it is not Countdown), and what the response `does`.
    """
    rows = []
    for row in read_rows(path, field):
        text = row[field]
        example = row["example"] if isinstance(row.get("example"), dict) else row
        reading = _attempts.read(text, example) if countdown_like(example) else None
        words = find_words(text)
        rows.append(row | {
            "completion": text, "example": example, "key": problem_key(row), "reading": reading,
            "words": words, "does": measure(text, example, reading, words),
        })  # fmt: skip
    return rows


def read_rows(path: Path, field: str):
    """Rows of a JSONL file whose `field` is a text."""
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        try:
            row = json.loads(line)
            if isinstance(row[field], str):
                yield row
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # empty, half-written by a run in progress, or of another kind


def problem_key(row: dict) -> str:
    return str(
        row.get("prompt") or json.dumps(row.get("example") or row.get("problem"), sort_keys=True, default=str)
    )


def run_samples(folder: Path) -> list[dict]:
    """A run's samples. Rows of eval_samples.jsonl, if there, take the place of samples.jsonl's few held-out
    ones of the same step.
    """
    full = read_samples(folder / "eval_samples.jsonl")
    steps = {row.get("step") for row in full}
    few = [
        s
        for s in read_samples(folder / "samples.jsonl")
        if s.get("split") != "test" or s.get("step") not in steps
    ]
    return [{"split": "test"} | row for row in full] + few


def evaluations(samples: list[dict]) -> dict[int, dict[str, list[dict]]]:
    """{step: {problem: its held-out samples}}, in order of the steps."""
    found = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if sample.get("split") == "test" and math.isfinite(number(sample.get("step"))):
            found[sample["step"]][sample["key"]].append(sample)
    return {step: dict(found[step]) for step in sorted(found)}


# ---------------------------------------------------------------- numbers with their uncertainty

DRAWS = 1000
NO = (None, None)


@cache
def resamples(n: int) -> np.ndarray:
    """How often each of n items is drawn in a resample, (DRAWS, n); seeded."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS).astype(float)


def bootstrap(values, share=False) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval by resampling the values (one a problem). Values that are all equal, where a
    resample tells nothing, have no interval, but for shares, which have Wilson's of so many problems.
    """
    values = np.asarray(values, float)
    if np.all(values == values[0]):
        return wilson(values.sum(), len(values)) if share else (float(values[0]), *NO)
    means = resamples(len(values)) @ values / len(values)
    return float(values.mean()), *(float(v) for v in np.quantile(means, (0.025, 0.975)))


def clustered(groups: list[list[bool]]) -> tuple[float, float, float]:
    """Share of right samples, a group a problem, with Wilson's 95 % interval for as many independent samples
    as would vary so much (Kish's design effect): samples of one problem resemble each other.
    """
    right, sizes = np.array([(sum(group), len(group)) for group in groups if group], float).T
    n, p = sizes.sum(), right.sum() / sizes.sum()
    if 0 < p < 1 and len(sizes) > 1:
        effect = max(((right - p * sizes) ** 2).sum() / (n * p * (1 - p)), 1.0)
    else:  # nothing tells how alike they are: a problem counts once
        effect = n / len(sizes)
    return wilson(right.sum() / effect, n / effect)


def student(p: float, freedom: int) -> float:
    """Quantile of Student's t, to 1 % from 5 degrees of freedom on (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(p)
    terms = [z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96,
             (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384]  # fmt: skip
    return sum(term / freedom**i for i, term in enumerate(terms))


def per_problem(problems: dict[str, list[dict]], key: str) -> dict[str, float]:
    """Mean of a behaviour, or of `correct` or `tokens`, over each problem's samples that have it."""
    found = {}
    for name, samples in problems.items():
        values = [v for s in samples if math.isfinite(v := value_of(s, key))]
        if values:
            found[name] = sum(values) / len(values)
    return found


def value_of(sample: dict, key: str) -> float:
    return number(sample["does"].get(key, sample.get(key)))


def paired(base: dict[str, float], now: dict[str, float]) -> np.ndarray:
    """Differences now - base on the problems that both have."""
    return np.array([now[name] - base[name] for name in now if name in base])


# ---------------------------------------------------------------- charts, for a figure and for the report


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
    title: str
    y: str
    series: list[Series] = field(default_factory=list)
    x: str = "training step"
    share: bool = False
    log_x: bool = False
    note: str = ""
    mark: float | None = None  # a step to mark: the aha step


GAINS = {
    "attempts": "attempts", "checks": "checks", "backtracks": "backtracks", "repeats": "repeats",
    "decomposes": "decompositions", "steps": "decomposition steps", "oat": "Oat-Zero words",
    "simplerl": "SimpleRL words",
}  # fmt: skip
AHA = [key for key in GAINS if key not in ("repeats", "simplerl")]  # what would be an aha moment
MARGIN = 0.1  # gain per response that an aha moment exceeds: broken texts look like backtracks now and then


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
                means = [
                    float(np.mean([side[name] for name in now if name in before])) for side in (before, now)
                ]
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
        solved = any(s.get("correct") for s in base.get(name, ()))
        for s in samples:
            does = s["does"]
            if s.get("correct") and does["reflects"]:
                errors = (
                    does.get("repeats", 0)
                    + does["wrong_equations"]
                    + does.get("checks", 0)
                    - does.get("verdicts_right", 0)
                )
                turns = does.get("backtracks", does.get("steps", 0)) + does["oat"]
                rank = (solved, not does.get("from_success", 1), errors, abs(turns - 4), len(s["completion"]))
                found.append((rank, len(found), s))
    return min(found)[-1] if found else None


def sentence(evals: dict) -> str:
    """The aha step in words, or that there was none."""
    steps = list(evals)
    if len(steps) < 2:
        return "No aha step yet: it takes a held-out evaluation of the base model and one after it."
    found = aha_steps(evals)
    aha = first_aha(found)
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
    share = [
        np.mean([s["does"]["reflects"] for group in evals[step].values() for s in group]) for step in steps
    ]
    return f"{text}. Responses that reflect: {share[0]:.0%} of the base model's, {share[-1]:.0%} at the end."


def gains(evals: dict) -> Chart:
    chart = Chart("What responses do more of", "gain per response")
    steps = list(evals)
    for color, (key, label) in enumerate(GAINS.items()):
        base = per_problem(evals[steps[0]], key) if steps else {}
        rows = [(step, paired(base, per_problem(evals[step], key))) for step in steps]
        points = [
            [step, *(bootstrap(gain) if step != steps[0] else (0.0, *NO))] for step, gain in rows if len(gain)
        ]
        if any(gain.any() for _, gain in rows):
            chart.series.append(Series(label, color, points))
    aha = first_aha(aha_steps(evals))
    chart.mark = aha.step if aha else None
    chart.note = "0: the base model. 95 % bootstrap intervals over problems, paired, each by itself" + (
        "; dotted: the aha step, by all together." if aha else "."
    )
    if evals and not chart.series:
        chart.note = "Nothing that is counted ever differed from the base model."
    return chart


WILSON = "95 % Wilson intervals, wider for samples of one problem."


def usefulness(evals: dict) -> Chart:
    chart = Chart("Does reflecting help?", "share that is right", share=True)
    for color, (wanted, label) in enumerate([(1.0, "reflects"), (0.0, "does not")]):
        points = []
        for step, problems in evals.items():
            right = [
                [bool(s.get("correct")) for s in group if s["does"]["reflects"] == wanted]
                for group in problems.values()
            ]
            if any(right):
                points.append([step, *clustered(right)])
        chart.series.append(Series(label, color, points))
    chart.note = f"Reflects: checks, backtracks or decomposes. No gap: reflection is superficial. {WILSON}"
    return chart


def by_length(evals: dict) -> Chart:
    chart = Chart("Accuracy by length, one checkpoint", "share that is right", x="tokens", share=True)
    steps = list(evals)
    for color, (name, step) in enumerate(zip(("base", "trained"), dict.fromkeys(steps[:1] + steps[-1:]))):
        known = [[(value_of(s, "tokens"), bool(s.get("correct"))) for s in g] for g in evals[step].values()]
        known = [[(tokens, right) for tokens, right in g if math.isfinite(tokens)] for g in known]
        flat = [tokens for group in known for tokens, _ in group]
        edges, points = np.unique(np.quantile(flat, (0.25, 0.5, 0.75))) if flat else [], []
        for low, high in zip([-math.inf, *edges], [*edges, math.inf]):
            part = [[(tokens, right) for tokens, right in group if low < tokens <= high] for group in known]
            if any(part):
                mean = float(np.mean([tokens for group in part for tokens, _ in group]))
                points.append([mean, *clustered([[right for _, right in group] for group in part])])
        chart.series.append(Series(f"{name}, step {step:g}", color, points))
    chart.note = f"Quarters of length. {WILSON}"
    if searches(evals):
        chart.note += " A search ends with success: the longest had none."
    return chart


def lengths(evals: dict, run: Run) -> Chart:
    chart = Chart("Length by outcome", "tokens")
    kinds = {
        "right": lambda s: s.get("correct"),
        "wrong": lambda s: not s.get("correct") and s.get("finished", True),
        "cut off": lambda s: not s.get("finished", True),
    }
    faint = {"right": "tokens_correct", "wrong": "tokens_wrong", "cut off": "tokens_cut"}
    for color, (name, wanted) in zip((2, 1, 3), kinds.items()):
        points = []
        for step, problems in evals.items():
            chosen = {key: [s for s in group if wanted(s)] for key, group in problems.items()}
            if values := [*per_problem(chosen, "tokens").values()]:
                points.append([step, *bootstrap(values)])
        x, y = run.series(faint[name])
        if points or len(x):
            chart.series.append(
                Series(name, color, [[*p, *NO] for p in zip(x.tolist(), y.tolist())], "faint")
            )
            chart.series.append(Series(name, color, points))
    chart.note = "Held-out responses; 95 % bootstrap intervals over problems. Faint: training."
    return chart


def soundness(evals: dict) -> Chart:
    chart = Chart("Is the reasoning sound?", "share of each", share=True)
    ratios = {
        "equations": lambda d: (d["equations"] - d["wrong_equations"], d["equations"]),
        "verdicts": lambda d: (d.get("verdicts_right", 0), d.get("checks", 0)),
        "answers": lambda d: (d.get("from_success", 0), "from_success" in d),
        "repeats": lambda d: (d.get("repeats", 0), d.get("attempts", 0)),
        "code": lambda d: (d["code"], 1),
        "mixed languages": lambda d: (d["mixed"], 1),
    }
    for color, (label, ratio) in enumerate(ratios.items()):
        points = []
        for step, problems in evals.items():
            sums = np.array(
                [np.sum([ratio(s["does"]) for s in group], axis=0) for group in problems.values()], float
            )
            if len(sums) and sums[:, 1].sum():
                points.append([step, *bootstrap_ratio(sums)])
        if color < 4 and points or any(p[1] for p in points):
            chart.series.append(Series(label, color, points))
    chart.note = "Equations that hold"
    if searches(evals):
        chart.note += ", right verdicts, answers that copy a success, attempts that repeat another"
    chart.note += ". 95 % bootstrap intervals over problems."
    return chart


def searches(evals: dict) -> bool:
    """Whether attempts are counted, as they are in Countdown."""
    return any("attempts" in s["does"] for problems in evals.values() for g in problems.values() for s in g)


def bootstrap_ratio(sums: np.ndarray) -> tuple[float, float, float]:
    """Ratio of two sums over problems, sums (problems, 2), and its 95 % interval by resampling problems; of
    problems that all have the same ratio, Wilson's, each counting once.
    """
    own = sums[sums[:, 1] > 0]
    total = sums.sum(0)
    if np.ptp(own[:, 0] / own[:, 1]) == 0:
        return wilson(len(own) * total[0] / total[1], len(own))
    above, below = (resamples(len(sums)) @ sums).T
    ratios = above[below > 0] / below[below > 0]
    return float(total[0] / total[1]), *(float(v) for v in np.quantile(ratios, (0.025, 0.975)))


def pass_at_k(right: int, n: int, k: int) -> float:
    """Chance that one of k samples is right, unbiased from n of which so many were (2107.03374)."""
    return 1 - comb(n - right, k) / comb(n, k)


def coverage(evals: dict, run: Run, sides: list | None = None) -> Chart:
    """pass@k of base against trained; sides: [(name, {problem: samples})] instead of the run's own."""
    chart = Chart("Does RL only sharpen? pass@k", "problems solved", x="samples k", share=True, log_x=True)
    steps = list(evals)
    own = [
        (name, evals[step]) for name, step in zip(("base", "trained"), dict.fromkeys(steps[:1] + steps[-1:]))
    ]
    largest = 1
    for color, (name, problems) in enumerate(sides or own):
        counts = [(sum(bool(s.get("correct")) for s in group), len(group)) for group in problems.values()]
        n = min((n for _, n in counts), default=0)
        largest = max(largest, n)
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= n]
        points = [[k, *bootstrap([pass_at_k(c, m, k) for c, m in counts], share=True)] for k in ks]
        chart.series.append(Series(name, color, points))
    if largest > 1:
        chart.note = "Unbiased estimate, 95 % bootstrap intervals over problems."
        if not sides:
            chart.note += " For k up to 64: plots/aha.py --help."
    else:  # the run kept one sample a problem: its summary's figures
        chart.series = []
        for color, name in enumerate(("base", "trained")):
            side = run.summary.get(name) or {}
            ks = sorted(
                int(key[5:])
                for key in side
                if re.fullmatch(r"pass@[0-9]+", key) and math.isfinite(number(side[key]))
            )
            points = [[k, side[f"pass@{k}"], *NO] for k in ks]
            if points and isinstance(interval := side.get("accuracy_ci"), list) and len(interval) == 2:
                points[0][2:] = map(number, interval)
            chart.series.append(Series(name, color, points))
        chart.note = (
            "From the run's summary, with an interval for k = 1 alone: one sample a problem was kept. "
            "For k up to 64: plots/aha.py --help."
        )
        if not any(series.points for series in chart.series):
            chart.note = "Known when the run has finished."
    return chart


def charts(run: Run, samples: list[dict], sides: list | None = None) -> list[Chart]:
    evals = evaluations(samples)
    found = [
        gains(evals), usefulness(evals), soundness(evals),
        by_length(evals), lengths(evals, run), coverage(evals, run, sides),
    ]  # fmt: skip
    for chart in found:
        for series in chart.series:
            series.points = [
                [None if v is None or not math.isfinite(v) else v for v in p] for p in series.points
            ]
            series.points = [p for p in series.points if p[0] is not None and p[1] is not None]
        chart.series = [series for series in chart.series if series.points]
    return found


# ---------------------------------------------------------------- the figure


def draw(chart: Chart, ax) -> None:
    lines = [series for series in chart.series if series.kind == "line"]
    for series in chart.series:
        x, y = [p[0] for p in series.points], [p[1] for p in series.points]
        color = COLORS[series.color % len(COLORS)]
        if series.kind == "faint":
            ax.plot(x, y, color=color, lw=0.9, alpha=0.3)
            continue
        spans = np.array([p for p in series.points if None not in p]).reshape(-1, 4)
        if series.kind != "points":
            ax.fill_between(spans[:, 0], spans[:, 2], spans[:, 3], color=color, alpha=0.08, lw=0)
        if series.kind != "smooth":
            ax.vlines(spans[:, 0], spans[:, 2], spans[:, 3], color=color, lw=1.3, alpha=0.7)
        style = (
            STYLES[lines.index(series) % len(STYLES)] if series in lines else "-"
        )  # coinciding lines are both seen
        style, marker = ("" if series.kind == "points" else style), (None if series.kind == "smooth" else "o")
        ax.plot(x, y, color=color, lw=2.2, ls=style, marker=marker, ms=5, clip_on=False, zorder=3)
    handles = {}
    for s in chart.series:
        style = STYLES[lines.index(s) % len(STYLES)] if s in lines else "-"
        key = Line2D(
            [], [], color=COLORS[s.color % len(COLORS)], lw=2.2, ls=style, marker="o", ms=5, label=s.label
        )
        handles[s.label] = key
    ax.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    if handles:
        ax.legend(
            handles=handles.values(), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, borderpad=0,
            fontsize=10.5, ncols=4, handlelength=1.8, handletextpad=0.35, columnspacing=0.7,
        ).set_in_layout(False)  # fmt: skip
    else:
        ax.text(0.5, 0.5, "no data yet", transform=ax.transAxes, ha="center", color=GREY)
        ax.set_yticks([])
    if handles and ax.dataLim.y0 >= 0:
        ax.set_ylim(0, 1 if chart.share else None)
    if chart.share and handles:
        ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.6g}%")
    if chart.log_x and handles:
        ks = sorted({p[0] for s in chart.series for p in s.points})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ks, [f"{k:g}" for k in ks])
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if chart.mark is not None:
        ax.axvline(chart.mark, color=GREY, lw=1.6, ls=(0, (1, 1.2)))
    if "gain" in chart.y:
        ax.axhline(0, color=GREY, lw=1)
    ax.annotate(
        wrap(chart.note, 54),
        (0, 0),
        (0, -40),
        "axes fraction",
        "offset points",
        fontsize=10,
        color=GREY,
        va="top",
    )


def wrap(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        lines[-1:] = (
            [f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [lines[-1], word]
        )
    return "\n".join(lines)


def figure(run: Run, samples: list[dict], sides: list | None = None) -> Figure:
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
        draw(chart, ax)
    return fig


# ---------------------------------------------------------------- command line


def table(samples: list[dict]) -> str:
    """Means of what the samples do, with bootstrap intervals over problems; Markdown."""
    problems = defaultdict(list)
    for sample in samples:
        problems[sample["key"]].append(sample)
    keys = dict.fromkeys(key for sample in samples for key in sample["does"])
    lines = [
        f"| mean of {len(samples)} responses to {len(problems)} problems | a response | 95 % interval |",
        "|---|---|---|",
    ]
    for key in keys:
        mean, low, high = bootstrap([*per_problem(problems, key).values()])
        lines.append(f"| {key} | {mean:.3f} | " + (f"{low:.3f} … {high:.3f} |" if low is not None else "– |"))
    return "\n".join(lines)


def sides_of(paths: dict[str, Path | None], task: str) -> list | None:
    """[(name, {problem: samples})] of the eval_samples.jsonl files or their folders that are given, of this
    task alone. Errors: NotARun.
    """
    sides = []
    for name, path in paths.items():
        if path:
            sets = defaultdict(lambda: defaultdict(list))
            for row in read_rows(path / "eval_samples.jsonl" if path.is_dir() else path, "completion"):
                kind = str(row.get("task", task))
                if kind.split(":")[0] == task and not kind.endswith("(greedy)"):
                    sets[kind][problem_key(row)].append(row)
            if len(sets) != 1:
                raise NotARun(
                    f"{path} holds {len(sets)} sets of {task} problems, and one is needed: give what "
                    "`python tinyr1.py eval ... --eval_samples 64` wrote."
                )
            sides.append((name, *sets.values()))
    return sides or None


def add_sides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, help="eval folder of the base model, for pass@k")
    parser.add_argument("--trained", type=Path, help="eval folder of the trained model, for pass@k")


def write(
    folder: Path, out: Path | None = None, base: Path | None = None, trained: Path | None = None
) -> str:
    """Draw the figure; returns the aha step in words, its best sample, and where the figure is."""
    run, samples = load_run(folder), run_samples(folder)
    sides = sides_of({"base": base, "trained": trained}, run.config.get("task"))
    save(figure(run, samples, sides), out or run.path / "plots", "aha")
    evals = evaluations(samples)
    told = [sentence(evals)]
    if (aha := first_aha(aha_steps(evals))) and (sample := best_sample(evals, aha.step)):
        told.append(f"\n{str(sample.get('prompt', '')).strip()}\n{sample['completion'].strip()}\n")
    return "\n".join([*told, f"{out or run.path / 'plots'}/aha.png and .pdf"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder, or a .jsonl file of samples")
    parser.add_argument("--field", default="completion", help="of such a file: the key of the text")
    add_sides(parser)
    parser.add_argument("--out", type=Path, help="folder of the figure (default: plots/ of the run)")
    args = parser.parse_args(argv)
    try:
        if args.run.is_file():
            if not (samples := read_samples(args.run, args.field)):
                raise NotARun(
                    f"{args.run} holds no row with a text under {args.field!r}: give its key with --field."
                )
            print(table(samples))
            return 0
        print(write(args.run, args.out, args.base, args.trained))
    except (NotARun, OSError) as error:
        print(f"Nothing drawn: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
