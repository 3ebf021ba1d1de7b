"""The closing summary of a run, read from its folder alone: base against trained, and one problem answered
by both.
"""

import itertools
import json
import shutil
import textwrap
from pathlib import Path

from tasks import read_jsonl

ROWS = {  # summary key -> what the closing table calls it; other keys stay in summary.json
    "accuracy": "accuracy on held-out problems", "accepted": "accepted by a holed verifier",
    "greedy": "accuracy without chance",
    "tokens": "tokens per response", "tokens_correct": "tokens of right responses",
    "tokens_wrong": "tokens of wrong responses", "attempts": "attempts per response",
    "search_share": "responses that search", "attempts_within_search": "attempts within those",
    "give_up_share": "searches given up", "verdict_accuracy": "verdicts that are right",
    "decomposes": "responses that decompose", "decomposes_fully": "down to single digits",
    "steps": "steps of arithmetic", "no_answer_share": "responses without an answer",
    "cut_share": "responses cut at the cap", "verifier_error": "verdicts that failed",
}  # fmt: skip

# keys that begin like this are numbers per response; the others are shares
COUNTS = ("tokens", "attempts", "steps")

DIGESTS = {  # key of a run's environment -> what has that digest
    "changes_digest": "uncommitted changes", "task_digest": "task files", "model_digest": "model files",
}  # fmt: skip


def options(differences: dict, hidden=()) -> list[str]:
    """The options in which a run differs from its preset, in words such as `lr 0.0001`."""
    told = []
    for name, value in differences.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        # where it lay on one machine is nobody else's concern
        if name in ("model", "task"):
            text = Path(text).name
        if name not in hidden:
            told.append(f"{name} {text or 'none'}")
    return told


def origin(environment: dict) -> list[str]:
    """What a run was made of: the commit and the digests."""
    commit = [f"commit {environment['commit'][:10]}"] if environment.get("commit") else []
    return commit + [f"{what} {environment[key]}" for key, what in DIGESTS.items() if environment.get(key)]


def table(base: dict, after: dict | None = None) -> str:
    """Base against trained, one row per figure; shares in per cent."""

    def cell(side, key):
        if side.get(key) is None:
            return "-"
        if key.startswith(COUNTS):
            return f"{side[key]:.1f}"
        interval = side.get("accuracy_ci") if key == "accuracy" else None
        return f"{side[key]:.1%}" + ("  [{:.1%}, {:.1%}]".format(*interval) if interval else "")

    names = ROWS | {key: key for key in base if key.startswith(("pass@", "cons@"))}
    if not any((side or {}).get("verifier_error") for side in (base, after)):
        names.pop("verifier_error")
    lines = [f"{'':32}{'base' if after else 'model':24}{'trained' if after else ''}"]
    for key, name in names.items():
        if key in base:
            lines.append(f"{name:32}{cell(base, key):24}{cell(after, key) if after else ''}")
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
        lines = []
        for text in record["completion"].splitlines():
            lines += textwrap.wrap(text, width) or [""]
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
    held = [sample for sample in samples if sample["split"] == "test"]
    config = json.loads((run / "config.json").read_text())
    preset = [f"preset {config['preset']}"] if config.get("preset") else []
    told = [*preset, *options(config.get("differences", {})), *origin(config.get("environment", {}))]
    print("\n" + ", ".join(told))
    print("\n" + table(summary["base"], summary["trained"]))
    before, after = ([s for s in held if s["step"] == step] for step in (0, summary["steps"]))
    side_by_side(before, after)
