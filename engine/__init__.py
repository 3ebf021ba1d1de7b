"""Sampling: `generate` in rollout.py, its fast path in decoder.py, its generic path in generic.py."""


def round_up(x: int, n: int) -> int:
    """The smallest multiple of n that is at least x."""
    return -(-x // n) * n
