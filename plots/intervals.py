"""Confidence intervals that need no resampling."""

import math
from statistics import NormalDist


def wilson(right: float, n: float) -> tuple[float, float, float]:
    """Share right/n with Wilson's 95 % interval, which has a width at 0 and at 1, too."""
    z = NormalDist().inv_cdf(0.975)
    p, spread = right / n, z * math.sqrt(right / n * (1 - right / n) / n + z * z / (4 * n * n))
    center, scale = p + z * z / (2 * n), 1 + z * z / n
    # rounding must not put the share outside of its interval
    return p, max(min((center - spread) / scale, p), 0.0), min(max((center + spread) / scale, p), 1.0)
