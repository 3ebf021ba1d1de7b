"""Rewards that add up: `--rewards task,format:0.2,overlong` is the weighted sum of named components.

Nothing else changes a reward, except a KL penalty, which enters the advantage. A component is a function of
one response; its mean per step is the curve `reward/<name>`. Without `task` the run is a control, in which
training sees nothing but the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks import TaskError, Verdict, choose, extract_answer


@dataclass
class Response:
    """What a component may use."""

    text: str
    # What the task's `reward` returned.
    verdict: Verdict
    # Of the completion: its length, the cap on it, and how far before the cap the overlong penalty begins.
    tokens: int
    cap: int
    buffer: int
    # Uniform in [0,1), for controls.
    chance: float


def overlong(response: Response) -> float:
    """0 up to `buffer` tokens before the cap, then linear to -1 at the cap: DAPO, 2503.14476, eq. 13."""
    over = (response.tokens - (response.cap - response.buffer)) / response.buffer
    return -min(max(over, 0.0), 1.0)


def answers(response: Response) -> float:
    """1 if there is an answer where the task looks for one."""
    verdict = response.verdict
    answer = verdict["answer"] if "answer" in verdict else extract_answer(response.text)
    return float(answer is not None)


def tags(response: Response) -> float:
    """The share of <think>, </think>, <answer> and </answer> that the text has exactly once."""
    found = [response.text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    return sum(found) / len(found)


COMPONENTS: dict[str, Callable[[Response], float]] = {
    "task": lambda response: response.verdict["reward"],
    "format": answers,
    "tags": tags,
    "overlong": overlong,
    # Controls.
    "random": lambda response: float(response.chance < 0.5),
    "inverted": lambda response: float(not is_correct(response.verdict)),
}


def parse(spec: str) -> dict[str, float]:
    """{component: weight} of an option such as `task,format:0.2`. Errors: TaskError."""
    weights: dict[str, float] = {}
    for part in spec.split(","):
        name, _, weight = part.strip().partition(":")
        choose("reward", name, COMPONENTS)
        if name in weights:
            raise TaskError(f"--rewards {spec} names {name} twice.")
        try:
            weights[name] = float(weight or 1)
        except ValueError as error:
            raise TaskError(
                f"--rewards {spec}: {weight!r} is not a weight; write {name}:0.5, for example."
            ) from error
        if not np.isfinite(weights[name]) or weights[name] == 0:
            raise TaskError(f"--rewards {spec}: the weight of {name} must be a number other than 0.")
    return weights


def total(records: list[dict], cfg: Any, seed: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(rewards (N,), {component: its values (N,) before weighting}) of N records by --rewards, in float32.

    A control's reward replaces the task's in the records, which keep that as task_reward, and decides what
    training is told of right and wrong: nothing else may leak. Errors: TaskError.
    """
    chance = np.random.default_rng(seed).random(len(records))
    responses = [
        Response(r["completion"], r, r["tokens"], cfg.max_new_tokens, cfg.overlong_buffer, u)
        for r, u in zip(records, chance)
    ]
    rewards, parts = np.zeros(len(records), np.float32), {}
    for name, weight in parse(cfg.rewards).items():
        parts[name] = np.array([COMPONENTS[name](response) for response in responses], np.float32)
        rewards = rewards + np.float32(weight) * parts[name]
    if "task" not in parts:
        for record, reward in zip(records, rewards.tolist()):
            record |= {"task_reward": record["reward"], "reward": reward}
    return rewards, parts


def is_correct(record: dict) -> bool:
    """What training is told: the task's verdict, or for a control whether its reward is above a half. A task
    whose reward may be wrong says so in `accepted`; then training is not told the truth.
    """
    if "task_reward" in record:
        return record["reward"] > 0.5
    return bool(record.get("accepted", record["correct"]))
