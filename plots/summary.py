"""The closing summary of a run, read from its folder alone: base against trained, and one problem answered
by both.

python plots/summary.py RUN
"""

import itertools
import json
import shutil
import textwrap
from pathlib import Path

from tasks import read_jsonl

ROWS = {  # summary key -> what the closing table calls it; other keys stay in summary.json
    "accuracy": "accuracy on held-out problems", "greedy": "accuracy without chance",
    "tokens": "tokens a response", "tokens_correct": "tokens of right responses",
    "tokens_wrong": "tokens of wrong responses", "attempts": "attempts a response",
    "search_share": "responses that search", "attempts_within_search": "attempts within those",
    "give_up_share": "searches given up", "verdict_accuracy": "verdicts that are right",
    "decomposes": "responses that decompose", "decomposes_fully": "down to single digits",
    "steps": "steps of arithmetic", "no_answer_share": "responses without an answer",
    "cut_share": "responses cut at the cap", "verifier_error": "verdicts that failed",
}  # fmt: skip

COUNTS = ("tokens", "attempts", "steps")  # what begins so is a number a response; the others are shares


DIGESTS = {  # key of a run's environment -> what has that digest
    "changes_digest": "uncommitted changes", "task_digest": "task files", "model_digest": "model files",
}  # fmt: skip


def options(differences: dict, hidden=()) -> list[str]:
    """The options in which a run differs from its preset, in words such as `lr 0.0001`."""
    told = []
    for name, value in differences.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        if name in ("model", "task"):  # where it lay on one machine is nobody else's concern
            text = Path(text).name
        if name not in hidden:
            told.append(f"{name} {text or 'none'}")
    return told


def origin(environment: dict) -> list[str]:
    """What a run was made of: the commit and the digests."""
    commit = [f"commit {environment['commit'][:10]}"] if environment.get("commit") else []
    return commit + [f"{what} {environment[key]}" for key, what in DIGESTS.items() if environment.get(key)]


def table(base: dict, after: dict | None = None) -> str:
    """Base against trained, a row a figure; shares in per cent."""

    def cell(side, key):
        if side.get(key) is None:
            return "-"
        if not key.startswith(COUNTS):
            lo_hi = side.get("accuracy_ci") if key == "accuracy" else None
            return f"{side[key]:.1%}" + (f"  [{lo_hi[0]:.1%}, {lo_hi[1]:.1%}]" if lo_hi else "")
        return f"{side[key]:.1f}"

    names = ROWS | {k: k for k in base if k.startswith(("pass@", "cons@"))}
    if not any((side or {}).get("verifier_error") for side in (base, after)):
        names.pop("verifier_error")
    lines = [f"{'':32}{'base' if after else 'model':24}{'trained' if after else ''}"]
    lines += [f"{names[k]:32}{cell(base, k):24}{cell(after, k) if after else ''}" for k in names if k in base]
    return "\n".join(line.rstrip() for line in lines)


def side_by_side(before: list[dict], after: list[dict]) -> None:
    """One problem answered by the base and by the trained model: one that training solved, by a search of
    typical length.
    """
    pairs = [(a, b) for a, b in zip(before, after) if a["example"] == b["example"]]
    solved = [(a, b) for a, b in pairs if b["correct"] and not a["correct"]] or pairs
    if not solved:
        return
    solved.sort(key=lambda pair: pair[1]["tokens"])
    a, b = solved[len(solved) // 2]
    width = max(30, min(60, shutil.get_terminal_size((100, 24)).columns // 2 - 3))

    def column(title, record):
        verdict = "right" if record["correct"] else "wrong"
        lines = [
            line for text in record["completion"].splitlines() for line in textwrap.wrap(text, width) or [""]
        ]
        lines = lines if len(lines) <= 40 else [*lines[:20], "[...]", *lines[-19:]]
        return [f"{title}: {verdict}, {record['tokens']} tokens", "-" * width, *lines]

    print(f"\n{a['prompt'].strip()}\n")
    for left, right in itertools.zip_longest(column("base", a), column("trained", b), fillvalue=""):
        print(f"{left:{width}} | {right}")
    print()


def show(run: Path) -> None:
    """Print the summary of a finished run."""
    summary = json.loads((run / "summary.json").read_text())
    samples = read_jsonl(run / "samples.jsonl")
    held = [s for s in samples if s["split"] == "test"]
    config = json.loads((run / "config.json").read_text())
    preset = [f"preset {config['preset']}"] if config.get("preset") else []
    told = [*preset, *options(config.get("differences", {})), *origin(config.get("environment", {}))]
    print("\n" + ", ".join(told))
    print("\n" + table(summary["base"], summary["trained"]))
    side_by_side([s for s in held if s["step"] == 0], [s for s in held if s["step"] == summary["steps"]])
