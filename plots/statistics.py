"""Numbers with their uncertainty: intervals of shares and means, pass@k, smoothing. Imports numpy alone."""

import math
from functools import cache
from statistics import NormalDist

import numpy as np

DRAWS = 1000
# the bounds of a value that has no interval
NO_INTERVAL = (None, None)


def wilson(right: float, n: float) -> tuple[float, float, float]:
    """Share right/n with Wilson's 95 % interval, which has a width at 0 and at 1, too."""
    z = NormalDist().inv_cdf(0.975)
    share = right / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    center, scale = share + z * z / (2 * n), 1 + z * z / n
    # rounding must not put the share outside of its interval
    low = max(min((center - spread) / scale, share), 0.0)
    high = min(max((center + spread) / scale, share), 1.0)
    return share, low, high


@cache
def resamples(n: int) -> np.ndarray:
    """How often each of n items is drawn in a resample, (DRAWS, n); seeded."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS).astype(float)


def bootstrap(values, share=False) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval by resampling the values (one per problem). A resample of equal values tells
    nothing: they have no interval, except shares, which have Wilson's interval for as many problems.
    """
    values = np.asarray(values, float)
    if np.all(values == values[0]):
        return wilson(values.sum(), len(values)) if share else (float(values[0]), *NO_INTERVAL)
    means = resamples(len(values)) @ values / len(values)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def bootstrap_ratio(sums: np.ndarray) -> tuple[float, float, float]:
    """Ratio of two sums over problems, sums (problems, 2), and its 95 % interval by resampling problems. If
    all problems have the same ratio, Wilson's interval, in which each problem counts once.
    """
    own = sums[sums[:, 1] > 0]
    total = sums.sum(0)
    if np.ptp(own[:, 0] / own[:, 1]) == 0:
        return wilson(len(own) * total[0] / total[1], len(own))
    above, below = (resamples(len(sums)) @ sums).T
    low, high = np.quantile(above[below > 0] / below[below > 0], (0.025, 0.975))
    return float(total[0] / total[1]), float(low), float(high)


def clustered(groups: list[list[bool]]) -> tuple[float, float, float]:
    """Share of right samples, one group per problem, with a 95 % interval. Samples of one problem resemble
    each other, so the interval is Wilson's for the number of independent samples that would vary as much
    (Kish's design effect).
    """
    right, sizes = np.array([(sum(group), len(group)) for group in groups if group], float).T
    n, share = sizes.sum(), right.sum() / sizes.sum()
    if 0 < share < 1 and len(sizes) > 1:
        effect = max(((right - share * sizes) ** 2).sum() / (n * share * (1 - share)), 1.0)
    else:
        # nothing tells how alike they are: a problem counts once
        effect = n / len(sizes)
    return wilson(right.sum() / effect, n / effect)


def student(p: float, freedom: int) -> float:
    """Quantile of Student's t, to 1 % from 5 degrees of freedom on (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(p)
    terms = [
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    ]
    return sum(term / freedom**i for i, term in enumerate(terms))


def paired(base: dict[str, float], now: dict[str, float]) -> np.ndarray:
    """Differences now - base on the problems that both have."""
    return np.array([now[name] - base[name] for name in now if name in base])


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from c right ones of n (Codex, 2107.03374, eq. 1)."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Local linear fit of y (n,) at every x, under Gaussian weights: nothing lags, lines stay lines.

    It is linear in y, so that smoothed parts sum to the smoothed whole.
    """
    if len(x) < 3:
        return y
    width, fit = max(np.median(np.diff(x)), (x[-1] - x[0]) / 20), np.empty(len(y))
    for i, center in enumerate(x):
        near = np.abs(x - center) <= 4 * width
        d = (x[near] - center) / width
        weight = np.exp(-0.5 * d**2)
        s0, s1, s2 = (weight @ d**k for k in range(3))
        # else the points near by tell no slope
        if s0 * s2 - s1**2 > 1e-6:
            weight *= s2 - s1 * d
        fit[i] = weight @ y[near] / weight.sum()
    return fit
