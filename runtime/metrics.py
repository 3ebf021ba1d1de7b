"""What is reported: means and records of samples, the statistics of an evaluation, the end of a run."""

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from engine.rollout import Rollout
from plots.statistics import pass_at_k, wilson
from runtime.problems import Problem
from tasks import find_answer

# Whether two answers mean the same.
Equivalent = Callable[[str, str], bool]

# keys of a record that are reported by other names
NO_CURVE = {"correct", "tokens", "finished", "problem", "sample", "answer"}


def sample_records(
    problems: list[Problem], texts: list[str], verdicts: list[dict], rollout: Rollout, G: int
) -> list[dict]:
    """One dict per sample: the problem, the text, its length and what the task found."""
    lengths, finished = rollout.length.tolist(), rollout.finished.tolist()
    records = []
    for i, (text, verdict) in enumerate(zip(texts, verdicts)):
        problem = problems[i // G]
        about = {"example": problem.example, "prompt": problem.prompt, "completion": text}
        records.append(about | {"tokens": lengths[i], "finished": finished[i]} | verdict)
    return records


def summarise(records: list[dict]) -> dict[str, float]:
    """Means over the samples: of every numeric key a task reports (where present), and of lengths by
    outcome.
    """
    numeric = (k for r in records for k, v in r.items() if isinstance(v, numbers.Number))
    keys = [k for k in dict.fromkeys(numeric) if k not in NO_CURVE]
    m = {k: float(np.mean([r[k] for r in records if isinstance(r.get(k), numbers.Number)])) for k in keys}
    length, finished, correct = (
        np.array([r[k] for r in records]) for k in ("tokens", "finished", "correct")
    )  # (N,)
    m |= {
        "accuracy": float(correct.mean()),
        "tokens": float(length.mean()),
        "tokens_max": float(length.max()),
        "cut_share": float(1 - finished.mean()),
    }
    for name, rows in (("correct", correct), ("wrong", ~correct & finished), ("cut", ~finished)):
        if rows.any():
            m[f"tokens_{name}"] = float(length[rows].mean())
    return m


def dead_groups(records: list[dict], G: int) -> np.ndarray:
    """(B,) bool, the groups whose task rewards (or the control's) are all equal. Such a group still has a
    gradient where another component of --rewards differs, unless --filter_groups leaves it out.
    """
    reward = np.array([r["reward"] for r in records]).reshape(-1, G)
    return (reward == reward[:, :1]).all(1)


def step_metrics(samples: Any, cfg: Any) -> dict[str, float]:
    """Means over the Samples of a training step, and how their rewards vary within the groups."""
    rewards = samples.rewards.reshape(-1, cfg.group)  # (B,G)
    metrics = summarise(samples.records) | {
        "reward_shaped": torch.from_numpy(rewards).mean().item(),
        "reward_std": torch.from_numpy(rewards).std(1, correction=min(1, cfg.group - 1)).mean().item(),
        "dead_groups": float(dead_groups(samples.records, cfg.group).astype(np.float32).mean()),
    }
    if len(samples.components) > 1:
        metrics |= {f"reward/{name}": float(part.mean()) for name, part in samples.components.items()}
    return metrics | ({"resampled": len(samples.problems) - cfg.prompts} if cfg.max_resamples else {})


def evaluation(records: list[dict], k: int, equivalent: Equivalent | None = None) -> dict[str, Any]:
    """The figures of k samples of every problem, problem by problem: those of `summarise`; accuracy, which
    is pass@1 as the mean over all samples, with its interval; unbiased pass@j for j = 1, 2, 4, ... k; cons@k,
    the chance that a majority of equivalent answers is right; n samples of so many problems. Where answers
    are not known (the task gives none, and the texts have none, or not all of the right ones have one), there
    is neither cons@k nor no_answer_share.
    """
    right = np.array([r["correct"] for r in records]).reshape(-1, k)  # (problems,k)
    answers = [r["answer"] if "answer" in r else find_answer(r["completion"]) for r in records]
    stated = [answer is not None for answer in answers]
    known = any("answer" in r for r in records) or any(stated)
    known = known and all(has for has, r in zip(stated, records) if r["correct"])
    m = summarise(records) | {"accuracy_ci": interval(right.mean(1)), "n": right.size, "problems": len(right)}
    if known:
        m["no_answer_share"] = float(np.mean([answer is None for answer in answers]))
    for j in sorted({2**i for i in range(k.bit_length())} | {k}):
        m[f"pass@{j}"] = float(np.mean([pass_at_k(k, int(c), j) for c in right.sum(1)]))
    if known:
        votes = [
            majority(answers[i * k : (i + 1) * k], row.tolist(), equivalent) for i, row in enumerate(right)
        ]
        m[f"cons@{k}"] = float(np.mean(votes))
    return m


def majority(answers: list, correct: list[bool], equivalent: Equivalent | None = None) -> float:
    """Chance that a majority vote over the answers is right (cons@n of DeepSeek-R1): ties share it, no
    answer has no vote. `equivalent(a, b)` joins answers that are written differently; a wrong answer never
    joins right ones.
    """
    # (answer, right) -> votes
    votes: dict[tuple[str, bool], int] = {}
    for answer, right in zip(answers, correct):
        if answer is None:
            continue
        key = str(answer), bool(right)
        if key not in votes and equivalent:
            alike = (other for other in votes if other[1] == key[1] and equivalent(other[0], key[0]))
            key = next(alike, key)
        votes[key] = votes.get(key, 0) + 1
    top = [right for (_, right), n in votes.items() if n == max(votes.values())]
    return sum(top) / len(top) if top else 0.0


def interval(per_problem: np.ndarray, draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of the mean over problems; the resampling is seeded. Where all problems are
    alike, such as all right or all wrong, it would have no width: Wilson's interval, a problem counting once
    however many samples it has.
    """
    if np.ptp(per_problem) == 0:
        return [*wilson(float(per_problem.sum()), len(per_problem))[1:]]
    picks = np.random.default_rng(0).integers(0, len(per_problem), (draws, len(per_problem)))
    return [float(x) for x in np.quantile(per_problem[picks].mean(1), (0.025, 0.975))]


def remarks(rows: list[dict]) -> list[str]:
    """What the closing lines must not hide, from a run's rows of metrics."""
    steps = [row for row in rows if "reward_std" in row]
    found = []
    if failed := sum(row.get("verifier_error", 0.0) > 0 for row in steps):
        share = np.mean([row.get("verifier_error", 0.0) for row in steps])
        found.append(
            f"verdicts failed in {failed} of {len(steps)} steps, {share:.1%} of them all: see `error` in "
            "samples.jsonl"
        )
    if steps and all(row["reward_std"] == 0 for row in steps):
        found.append(
            "in no step did the samples of a group differ in reward, so nothing was learned: check reward() "
            "with `python tinyr1.py tasks FILE`, or choose easier problems or a stronger model"
        )
    elif steps and not any(row["accuracy"] for row in steps):
        found.append("no training sample was ever right")
    return found
