"""What is reported: means and records of samples, the statistics of an evaluation, the end of a run."""

import json
import math
import numbers
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from models import peak_gb
from plots.summary import show
from runfolder import HERE, write_json


def summarise(results: list[dict], roll) -> dict:
    """Means over the samples: of every numeric key a task reports (where present), and of lengths by
    outcome.
    """
    length, finished = roll.length.float().cpu(), roll.finished.cpu()
    correct = torch.tensor([r["correct"] for r in results])
    keys = dict.fromkeys(
        k for r in results for k, v in r.items() if isinstance(v, numbers.Number) and k != "correct"
    )
    m = {k: float(np.mean([r[k] for r in results if k in r])) for k in keys}
    m |= {
        "accuracy": correct.float().mean().item(),
        "tokens": length.mean().item(),
        "tokens_max": length.max().item(),
    }
    m["cut_share"] = (~finished).float().mean().item()
    for name, rows in (("correct", correct), ("wrong", ~correct & finished), ("cut", ~finished)):
        if rows.any():
            m[f"tokens_{name}"] = length[rows].mean().item()
    return m


def sample_records(batch, texts, results, roll, G) -> list[dict]:
    lengths, finished = roll.length.tolist(), roll.finished.tolist()
    return [
        {"example": batch[i // G].example, "prompt": batch[i // G].prompt, "completion": text,
         "tokens": lengths[i], "finished": finished[i], **results[i]}
        for i, text in enumerate(texts)
    ]  # fmt: skip


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from c right ones of n (Codex, 2107.03374, eq. 1)."""
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers: list, correct: list[bool]) -> float:
    """Chance that a majority vote over the answers is right (cons@n of DeepSeek-R1): ties share it, no
    answer has no vote.
    """
    votes = {}
    for answer, right in zip(answers, correct):
        if answer is not None:
            n, ok = votes.get(str(answer), (0, False))
            votes[str(answer)] = (n + 1, ok or right)
    top = [ok for n, ok in votes.values() if n == max(n for n, _ in votes.values())]
    return sum(top) / len(top) if top else 0.0


def interval(per_problem: np.ndarray, draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of the mean over problems; the resampling is seeded."""
    picks = np.random.default_rng(0).integers(0, len(per_problem), (draws, len(per_problem)))
    return [float(x) for x in np.quantile(per_problem[picks].mean(1), (0.025, 0.975))]


SUMMARY = "accuracy accuracy_ci tokens attempts attempts_within_search search_share cut_share n".split()


def finish(run, cfg, steps: int, clock: dict, trained: list[dict]) -> dict:
    """Write summary.json, draw the plots, print the table and one problem answered before and after."""
    evals = [row for row in run.rows("metrics.jsonl") if "eval/accuracy" in row]
    sides = [
        {k.removeprefix("eval/"): v for k, v in row.items() if k != "step"} for row in (evals[0], evals[-1])
    ]
    keys = dict.fromkeys([*SUMMARY, *(k for side in sides for k in side)])
    base, after = (
        {k: side.get(k) for k in keys} for side in sides
    )  # a key that one side lacks is null there
    summary = {"base": base, "trained": after, "steps": steps, "peak_gb": peak_gb(cfg.device)}
    if after.get("attempts") is not None:
        record = (HERE / "minibase" if cfg.model == "minibase" else Path(cfg.model)) / "record.json"
        longest = {k: max(r.get(k, 0) for r in trained) for k in ("attempts", "tokens")}
        summary["longest"] = {"trained": longest}
        if record.exists():
            summary["longest"]["pretraining"] = json.loads(record.read_text())["longest_search"]
    draw = time.perf_counter()
    drawn = subprocess.run(
        [sys.executable, HERE / "plots" / "curves.py", run.path], capture_output=True, text=True
    )
    clock |= {"plots": time.perf_counter() - draw, "total": clock["total"] + time.perf_counter() - draw}
    summary["seconds"] = {k: round(v, 2) for k, v in clock.items()}
    write_json(run.path / "summary.json", summary)
    show(run.path)
    print(
        f"{steps} steps in {clock['total'] / 60:.1f} minutes. Run folder: {run.path}; "
        f"the trained model: {run.path / 'final'}"
    )
    print(
        f"Plots: {', '.join(map(str, sorted((run.path / 'plots').glob('*.png'))))}"
        if drawn.returncode == 0
        else drawn.stderr.strip()
    )
    return summary
