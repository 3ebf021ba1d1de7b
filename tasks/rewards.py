"""Rewards that add up: `--rewards task,format:0.2,overlong` is the weighted sum of named components.

Nothing else changes a reward, except a KL penalty, which enters the advantage. A component is a function of
one response; its mean over a step is the curve `reward/<name>`. Without `task` the run is a control, and then
training learns what is right and wrong from the sum alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks import TaskError, choose, extract_answer


@dataclass
class Response:
    """What a component may look at."""

    text: str
    # the task's, with `reward` and `correct`
    verdict: dict
    # of the completion
    tokens: int
    # cap on the tokens, and how many tokens before it the penalty for overlong responses begins
    cap: int
    buffer: int
    # uniform in [0,1), for controls
    chance: float


def overlong(response: Response) -> float:
    """0 up to the buffer before the cap, then falling to -1 at the cap: DAPO, 2503.14476, eq. 13."""
    over = (response.tokens - (response.cap - response.buffer)) / response.buffer
    return -min(max(over, 0.0), 1.0)


def answers(response: Response) -> float:
    """1 if there is an answer where the task looks for one."""
    verdict = response.verdict
    answer = verdict["answer"] if "answer" in verdict else extract_answer(response.text)
    return float(answer is not None)


def tags(response: Response) -> float:
    """The share of <think>, </think>, <answer> and </answer> that stand exactly once."""
    found = [response.text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    return sum(found) / len(found)


COMPONENTS: dict[str, Callable[[Response], float]] = {
    "task": lambda response: response.verdict["reward"],
    "format": answers,
    "tags": tags,
    "overlong": overlong,
    # controls
    "random": lambda response: float(response.chance < 0.5),
    "inverted": lambda response: float(not response.verdict["correct"]),
}


def parse(spec: str) -> dict[str, float]:
    """{component: weight} of a text such as `task,format:0.2`. Errors: TaskError."""
    weights: dict[str, float] = {}
    for part in spec.split(","):
        name, _, weight = part.strip().partition(":")
        choose("reward", name, COMPONENTS)
        if name in weights:
            raise TaskError(f"--rewards {spec} names {name} twice.")
        try:
            weights[name] = float(weight or 1)
        except ValueError as error:
            raise TaskError(f"--rewards {spec}: {weight!r} is no weight; write {name}:0.5.") from error
        if not np.isfinite(weights[name]) or weights[name] == 0:
            raise TaskError(f"--rewards {spec}: the weight of {name} must be a number other than 0.")
    return weights


def total(spec: str, responses: list[Response]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rewards (N,) in float32 and each component's values (N,) before weighting."""
    parts = {
        name: np.array([COMPONENTS[name](response) for response in responses], np.float32)
        for name in parse(spec)
    }
    rewards = np.zeros(len(responses), np.float32)
    for name, weight in parse(spec).items():
        rewards = rewards + np.float32(weight) * parts[name]
    return rewards, parts
