"""A run as one page, RUN/report.html: what was learned, curves, aha panels, every sample that was kept.

    python tinyr1.py plot report runs/mini        # also while it trains: logs are read as far as they go
    python tinyr1.py plot report runs/mini --base runs/eval-base --trained runs/eval-trained

The page is one file. It loads nothing, and its policy forbids it to. A response is hostile input: it travels
as JSON without a `<`, and enters the page as text, never as markup.
"""

import hashlib
import html
import json
import math
import os
import re
from base64 import b64encode
from dataclasses import asdict
from pathlib import Path

from plots import aha
from plots.behaviours import evaluations, run_samples
from plots.charts import Chart, Series
from plots.curves import CURVES, GROWTH, METRICS, Panel
from plots.runs import History, control, load_run, number, so_far
from plots.statistics import NO_INTERVAL, smooth
from plots.summary import COUNTS, ROWS, options, origin
from tasks._text import attempts

TEMPLATE = Path(__file__).with_name("report_template.html")
CAPTION = "Faint: each step; lines: smoothed; dots: held-out problems with 95 % bootstrap intervals."
# Kinds of spans, in the order of the page's KINDS.
ATTEMPT, TURN, AGAIN, NOT_THERE, REACHED, WRONG_VERDICT, WRONG, WORD, ANSWER = range(9)


# ---------------------------------------------------------------- what the page shows of a response


def spans(sample: dict) -> list[int]:
    """[start, end, kind, ...] in UTF-16 units, as JavaScript counts characters."""
    text, reading, found = sample["completion"], sample["reading"], []
    if reading:
        left = [False, *attempts.abandoned(reading, sample["example"]["target"])]
        for attempt, after_another, again in zip(reading.attempts, left, attempts.repeats(reading)):
            kind = TURN if after_another else ATTEMPT
            found.append((attempt.start, attempt.end, AGAIN if again else kind))
            for check in attempt.checks:
                found.append((check.start, check.end, REACHED if check.yes else NOT_THERE))
                if not check.right:
                    found.append((check.start, check.end, WRONG_VERDICT))
    for equation in reading.equations if reading else attempts.equations(text):
        if not reading:
            found.append((equation.start, equation.end, ATTEMPT))
        if not equation.holds:
            found.append((equation.start, equation.end, WRONG))
    found += [(*span, WORD) for words in sample["words"].values() for span in words]
    end = text.rfind("</answer>")
    if (start := text.rfind("<answer>", 0, max(end, 0))) >= 0:
        found.append((start + len("<answer>"), end, ANSWER))
    # letters of two units each
    wide = [] if text.isascii() else [i for i, letter in enumerate(text) if letter > "\uffff"]

    def place(at: int) -> int:
        return at + sum(i < at for i in wide)

    return [part for start, end, kind in dict.fromkeys(found) for part in (place(start), place(end), kind)]


def shows_aha(sample: dict) -> bool:
    does = sample["does"]
    turned = does.get("backtracks", 0) or does["oat"] or does.get("steps", 0) > 1
    return bool(sample.get("correct") and turned and does.get("from_success", 1))


def browser(samples: list[dict]) -> tuple[list[str], list[list], dict[str, int]]:
    """(prompts, held-out ones first; a row per sample; key -> its place)."""
    order = sorted(samples, key=lambda sample: sample.get("split") != "test")
    places = {key: i for i, key in enumerate(dict.fromkeys(sample["key"] for sample in order))}
    prompts = {sample["key"]: str(sample.get("prompt") or sample["key"]) for sample in order}
    known = [sample for sample in order if math.isfinite(number(sample.get("step")))]
    return list(prompts.values()), [browser_row(sample, places) for sample in known], places


def browser_row(sample: dict, places: dict[str, int]) -> list:
    """A sample in the order of the page's names."""
    step, tokens = number(sample["step"]), number(sample.get("tokens"))
    return [
        places[sample["key"]],
        int(step) if step == int(step) else step,
        int(bool(sample.get("correct"))),
        tokens if math.isfinite(tokens) else None,
        int(bool(sample.get("finished", True))),
        int(bool(sample.get("verifier_error"))),
        int(shows_aha(sample)),
        int(sample.get("split") == "test"),
        sample["completion"],
        spans(sample),
    ]


# ---------------------------------------------------------------- charts


def panel_chart(panel: Panel, run: History) -> Chart:
    """A panel of plots/curves.py for the page."""
    chart = Chart(panel.title, panel.unit, share=panel.share)
    for color, (key, label) in enumerate(panel.labels.items()):
        x, y = run.series(key)
        if len(x):
            fit = smooth(x, y).clip(y.min(), y.max())
            for kind, values in (("faint", y), ("smooth", fit)):
                points = [[*point, *NO_INTERVAL] for point in zip(x.tolist(), values.tolist())]
                chart.series.append(Series(label, color, points, kind))
        if color < panel.overlay and (held := held_out_points(run, key)):
            chart.series.append(Series(label, color, held, "points"))
    return chart


def held_out_points(run: History, key: str) -> list[list]:
    """[step, value, low, high] of every probe and evaluation."""
    points = []
    for row in run.rows:
        for prefix in ("probe/", "eval/"):
            if math.isfinite(value := number(row.get(prefix + key))):
                interval = row.get(f"{prefix}{key}_ci")
                known = isinstance(interval, list) and len(interval) == 2
                known = known and all(math.isfinite(number(bound)) for bound in interval)
                points.append([row["step"], value, *(interval if known else NO_INTERVAL)])
    return points


def training_charts(run: History) -> list[Chart]:
    keys = {key for row in run.rows for key in row}
    return [panel_chart(panel, run) for panel in [*CURVES, *GROWTH] if panel.known(keys)]


def metric_charts(run: History) -> list[Chart]:
    """A chart for each number that was logged, whatever the algorithm and the task."""
    keys = {re.sub("^(eval|probe)/", "", key): None for row in run.rows for key in row if key != "step"}
    known = {key: panel for panel in [*CURVES, *GROWTH, *METRICS] for key in panel.labels}
    charts = []
    for key in keys:
        panel = known.get(key, Panel("", "as logged", {}))
        charts.append(panel_chart(Panel(key, panel.unit, {key: key}, panel.share), run))
    return [chart for chart in charts if chart.series]


# ---------------------------------------------------------------- the page


def table(run: History) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the figures of the first and the last evaluation."""
    evals = [row for row in run.rows if math.isfinite(number(row.get("eval/accuracy")))]
    if not evals:
        return [], []
    head = ["held-out problems", "base"] + [f"trained, step {evals[-1]['step']:g}"] * (len(evals) > 1)
    votes = [key[5:] for row in evals for key in row if re.match(r"eval/(pass|cons)@", key)]
    labels = ROWS | {key: key for key in votes}

    def cell(row, key):
        value, interval = number(row.get("eval/" + key)), row.get(f"eval/{key}_ci")
        if not math.isfinite(value):
            return "–"
        if key.startswith(COUNTS):
            return f"{value:.1f}"
        known = isinstance(interval, list) and all(math.isfinite(number(v)) for v in interval)
        return f"{value:.1%}" + (" [{:.1%}, {:.1%}]".format(*interval) if known else "")

    sides = [evals[0]] + [evals[-1]] * (len(evals) > 1)
    rows = []
    for key, label in labels.items():
        if "eval/" + key in evals[0]:
            rows.append([label, *(cell(side, key) for side in sides)])
    return head, rows


def summary(run: History) -> str:
    """One sentence: accuracy and length, from the base to now."""
    held = []
    for row in run.rows:
        for prefix in ("eval/", "probe/"):
            accuracy, tokens = (number(row.get(prefix + key)) for key in ("accuracy", "tokens"))
            if math.isfinite(accuracy):
                held.append((row["step"], accuracy, tokens))
    if not held:
        return "Nothing has been evaluated yet."
    (_, accuracy, tokens), (step, accuracy_now, tokens_now) = held[0], held[-1]
    if len(held) == 1:
        solved = f"The base model solves {accuracy:.0%} of the held-out problems"
        return f"{solved} in {tokens:.0f} tokens per response."
    return (
        f"In {step:g} steps, held-out accuracy went from {accuracy:.0%} to {accuracy_now:.0%} and the mean "
        f"response from {tokens:.0f} to {tokens_now:.0f} tokens."
    )


def facts_of(run: History) -> list[str]:
    """What the run is: its main options, those that differ from its preset, and its origin."""
    keys = ("model", "task", "task_args", "algo", "lr", "prompts", "group", "seed")
    facts = {key: run.config.get(key) for key in keys}
    for key in ("model", "task"):
        # where it lay on one machine is nobody else's concern
        if Path(str(facts[key])).is_absolute():
            facts[key] = Path(facts[key]).name
    told = []
    for key, value in facts.items():
        if value not in (None, "", []):
            told.append(f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    told += [f"preset {run.preset}"] if run.preset else []
    return told + options(run.differences, hidden=facts) + origin(run.environment)


def data(run: History, sides: list | None = None) -> dict:
    """Everything that the page shows; sides: aha.sides_of's, for pass@k."""
    samples = run_samples(run.path)
    evals, (prompts, rows, places) = evaluations(samples), browser(samples)
    moment = aha.first_aha(aha.aha_steps(evals))
    best = aha.best_sample(evals, moment.step) if moment else None
    done = max((row["step"] for row in run.rows), default=0)
    head, figures = table(run)
    return {
        "title": " · ".join(filter(None, ["tinyr1", run.name, control(run)])),
        "facts": " · ".join([*facts_of(run), so_far(run.config, done)]),
        "summary": summary(run),
        "live": not run.summary,
        "caption": CAPTION,
        "head": head,
        "table": figures,
        "curves": [asdict(chart) for chart in training_charts(run)],
        "aha": {
            "sentence": aha.sentence(evals),
            "problem": best and places[best["key"]],
            "step": best and best["step"],
        },
        "panels": [asdict(chart) for chart in aha.charts(run, samples, sides)],
        "metrics": [asdict(chart) for chart in metric_charts(run)],
        "problems": prompts,
        "samples": rows,
    }


def page(content: dict) -> str:
    """The HTML. Scripts and styles run by their hashes alone, so that nothing else in the page could."""
    text = TEMPLATE.read_text(encoding="utf-8")
    script = hash_source(re.search(r"<script>(.*?)</script>", text, re.S)[1])
    style = hash_source(re.search(r"<style>(.*?)</style>", text, re.S)[1])
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; base-uri 'none'; form-action 'none'"
    )
    safe = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    # the data come last: what they hold is not replaced
    for name, value in {"CSP": policy, "TITLE": html.escape(content["title"]), "DATA": safe}.items():
        text = text.replace("{{" + name + "}}", value, 1)
    return text


def hash_source(body: str) -> str:
    """What a content security policy calls this script or style."""
    return "'sha256-" + b64encode(hashlib.sha256(body.encode()).digest()).decode() + "'"


def write(
    folder: Path, out: Path | None = None, base: Path | None = None, trained: Path | None = None
) -> Path:
    """Write the report at once: whoever has it open never loads half a page."""
    run = load_run(folder)
    sides = aha.sides_of({"base": base, "trained": trained}, run.config.get("task"))
    out = out or run.path / "report.html"
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        aside.write_text(page(data(run, sides)), encoding="utf-8")
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    return out
