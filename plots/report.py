"""A run as one page, RUN/report.html: what was learned, curves, aha panels, every sample that was kept.

    python plots/report.py runs/mini        # also while it trains: logs are read as far as they go
    python plots/report.py runs/mini --base runs/eval-base --trained runs/eval-trained  # pass@k: see aha.py

The page is one file. It loads nothing, and its policy forbids it to. A response is hostile input: it travels
as JSON without a `<`, and enters the page as text, never as markup.
"""

import argparse
import hashlib
import html
import json
import math
import os
import re
import sys
from base64 import b64encode
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, too
from plots import aha
from plots.curves import (
    CURVES,
    GROWTH,
    METRICS,
    PREFIXES,
    NotARun,
    Panel,
    Run,
    control,
    load_run,
    number,
    smooth,
    so_far,
)
from plots.summary import COUNTS, ROWS, options, origin
from tasks import _attempts

TEMPLATE = Path(__file__).with_name("report_template.html")
CAPTION = "Faint: each step; lines: smoothed; dots: held-out problems with 95 % bootstrap intervals."
# Kinds of spans, in the order of the page's KINDS.
ATTEMPT, TURN, AGAIN, NOT_THERE, REACHED, WRONG_VERDICT, WRONG, WORD, ANSWER = range(9)


# ---------------------------------------------------------------- what the page shows of a response


def spans(sample: dict) -> list[int]:
    """[start, end, kind, ...] in UTF-16 units, as JavaScript counts characters."""
    text, reading, found = sample["completion"], sample["reading"], []
    if reading:
        left = [False, *_attempts.abandoned(reading, sample["example"]["target"])]
        for attempt, after_another, again in zip(reading.attempts, left, _attempts.repeats(reading)):
            found.append((attempt.start, attempt.end, AGAIN if again else TURN if after_another else ATTEMPT))
            for check in attempt.checks:
                found.append((check.start, check.end, REACHED if check.yes else NOT_THERE))
                if not check.right:
                    found.append((check.start, check.end, WRONG_VERDICT))
    for equation in reading.equations if reading else _attempts.equations(text):
        if not reading:
            found.append((equation.start, equation.end, ATTEMPT))
        if not equation.holds:
            found.append((equation.start, equation.end, WRONG))
    found += [(*span, WORD) for words in sample["words"].values() for span in words]
    end = text.rfind("</answer>")
    if (start := text.rfind("<answer>", 0, max(end, 0))) >= 0:
        found.append((start + len("<answer>"), end, ANSWER))
    wide = (
        [] if text.isascii() else [i for i, letter in enumerate(text) if letter > "\uffff"]
    )  # two units each
    place = lambda at: at + sum(i < at for i in wide)
    return [n for start, end, kind in dict.fromkeys(found) for n in (place(start), place(end), kind)]


def shows_aha(sample: dict) -> bool:
    does = sample["does"]
    turned = does.get("backtracks", 0) or does["oat"] or does.get("steps", 0) > 1
    return bool(sample.get("correct") and turned and does.get("from_success", 1))


def browser(samples: list[dict]) -> tuple[list[str], list[list], dict[str, int]]:
    """(prompts, held-out ones first; a row a sample, in the order of the page's names; key -> its place)."""
    order = sorted(samples, key=lambda s: s.get("split") != "test")
    places = {key: i for i, key in enumerate(dict.fromkeys(s["key"] for s in order))}
    prompts = {s["key"]: str(s.get("prompt") or s["key"]) for s in order}
    rows = []
    for s in order:
        if math.isfinite(step := number(s.get("step"))):
            tokens = number(s.get("tokens"))
            rows.append([
                places[s["key"]], int(step) if step == int(step) else step, int(bool(s.get("correct"))),
                tokens if math.isfinite(tokens) else None, int(bool(s.get("finished", True))),
                int(bool(s.get("verifier_error"))), int(shows_aha(s)), int(s.get("split") == "test"),
                s["completion"], spans(s),
            ])  # fmt: skip
    return list(prompts.values()), rows, places


# ---------------------------------------------------------------- charts


def panel_chart(panel: Panel, run: Run) -> aha.Chart:
    """A panel of plots/curves.py for the page."""
    chart = aha.Chart(panel.title, panel.unit, share=panel.share)
    for color, (key, label) in enumerate(panel.labels.items()):
        x, y = run.series(key)
        if len(x):
            fit = smooth(x, y).clip(y.min(), y.max())
            for kind, values in (("faint", y), ("smooth", fit)):
                points = [[*p, *aha.NO] for p in zip(x.tolist(), values.tolist())]
                chart.series.append(aha.Series(label, color, points, kind))
        held = []
        for row in run.rows:
            for prefix in ("probe/", "eval/") if color < panel.overlay else ():
                if math.isfinite(value := number(row.get(prefix + key))):
                    interval = row.get(f"{prefix}{key}_ci")
                    known = (
                        isinstance(interval, list)
                        and len(interval) == 2
                        and all(map(math.isfinite, map(number, interval)))
                    )
                    held.append([row["step"], value, *(interval if known else (None, None))])
        if held:
            chart.series.append(aha.Series(label, color, held, "points"))
    return chart


def training_charts(run: Run) -> list[aha.Chart]:
    keys = {key for row in run.rows for key in row}
    return [panel_chart(panel, run) for panel in [*CURVES, *GROWTH] if panel.known(keys)]


def metric_charts(run: Run) -> list[aha.Chart]:
    """A chart for each number that was logged, whatever the algorithm and the task."""
    keys = {re.sub("^(eval|probe)/", "", key): None for row in run.rows for key in row if key != "step"}
    known = {key: panel for panel in [*CURVES, *GROWTH, *METRICS] for key in panel.labels}
    charts = []
    for key in keys:
        panel = known.get(key, Panel("", "as logged", {}))
        charts.append(panel_chart(Panel(key, panel.unit, {key: key}, panel.share), run))
    return [chart for chart in charts if chart.series]


# ---------------------------------------------------------------- the page


def table(run: Run) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the figures of the first and the last evaluation."""
    evals = [row for row in run.rows if math.isfinite(number(row.get("eval/accuracy")))]
    if not evals:
        return [], []
    head = ["held-out problems", "base"] + [f"trained, step {evals[-1]['step']:g}"] * (len(evals) > 1)
    labels = ROWS | {k[5:]: k[5:] for row in evals for k in row if re.match(r"eval/(pass|cons)@", k)}

    def cell(row, key):
        value, interval = number(row.get("eval/" + key)), row.get(f"eval/{key}_ci")
        if not math.isfinite(value):
            return "–"
        if key.startswith(COUNTS):
            return f"{value:.1f}"
        known = isinstance(interval, list) and all(math.isfinite(number(v)) for v in interval)
        return f"{value:.1%}" + (" [{:.1%}, {:.1%}]".format(*interval) if known else "")

    sides = [evals[0]] + [evals[-1]] * (len(evals) > 1)
    return head, [
        [label, *(cell(s, k) for s in sides)] for k, label in labels.items() if "eval/" + k in evals[0]
    ]


def summary(run: Run) -> str:
    """One sentence: accuracy and length, from the base to now."""
    held = [
        (row["step"], *(number(row.get(kind + key)) for key in ("accuracy", "tokens")))
        for row in run.rows for kind in PREFIXES[1:] if math.isfinite(number(row.get(kind + "accuracy")))
    ]  # fmt: skip
    if not held:
        return "Nothing has been evaluated yet."
    (_, a0, t0), (step, a, t) = held[0], held[-1]
    if len(held) == 1:
        return f"The base model solves {a0:.0%} of the held-out problems in {t0:.0f} tokens a response."
    return (
        f"In {step:g} steps, held-out accuracy went from {a0:.0%} to {a:.0%} and the mean response from "
        f"{t0:.0f} to {t:.0f} tokens."
    )


def data(run: Run, sides: list | None = None) -> dict:
    """Everything that the page shows; sides: aha.sides_of's, for pass@k."""
    samples, config = aha.run_samples(run.path), run.config
    evals, (prompts, rows, places) = aha.evaluations(samples), browser(samples)
    moment = aha.first_aha(aha.aha_steps(evals))
    best = aha.best_sample(evals, moment.step) if moment else None
    facts = {
        key: config.get(key)
        for key in ("model", "task", "task_args", "algo", "lr", "prompts", "group", "seed")
    }
    for key in ("model", "task"):
        if Path(str(facts[key])).is_absolute():  # where it lay on one machine is nobody else's concern
            facts[key] = Path(facts[key]).name
    done = max((row["step"] for row in run.rows), default=0)
    head, figures = table(run)
    told = [
        f"{key} {' '.join(map(str, v)) if isinstance(v, list) else v}"
        for key, v in facts.items()
        if v not in (None, "", [])
    ]
    told += [f"preset {run.preset}"] if run.preset else []
    told += options(run.differences, hidden=facts) + origin(run.environment)
    return {
        "title": " · ".join(filter(None, ["tinyr1", run.name, control(run)])),
        "facts": " · ".join([*told, so_far(config, done)]),
        "summary": summary(run), "live": not run.summary, "caption": CAPTION, "head": head, "table": figures,
        "curves": [asdict(chart) for chart in training_charts(run)],
        "aha": {
            "sentence": aha.sentence(evals),
            "problem": best and places[best["key"]],
            "step": best and best["step"],
        },
        "panels": [asdict(chart) for chart in aha.charts(run, samples, sides)],
        "metrics": [asdict(chart) for chart in metric_charts(run)], "problems": prompts, "samples": rows,
    }  # fmt: skip


def page(content: dict) -> str:
    """The HTML. Scripts and styles run by their hashes alone, so that nothing else in the page could."""
    text = TEMPLATE.read_text(encoding="utf-8")
    digest = lambda body: "'sha256-" + b64encode(hashlib.sha256(body.encode()).digest()).decode() + "'"
    script, style = (
        re.search(r"<script>(.*?)</script>", text, re.S)[1],
        re.search(r"<style>(.*?)</style>", text, re.S)[1],
    )
    policy = (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    safe = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    for name, value in (
        ("CSP", policy),
        ("TITLE", html.escape(content["title"])),
        ("DATA", safe),
    ):  # data last
        text = text.replace("{{" + name + "}}", value, 1)
    return text


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the run folder)")
    aha.add_sides(parser)
    args = parser.parse_args(argv)
    try:
        print(write(args.run, args.out, args.base, args.trained))
    except (NotARun, OSError) as error:
        print(f"No report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
