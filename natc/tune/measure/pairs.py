"""Statistics of kernels that are timed in alternation: the ratio of their times in one turn.

In each turn chance decides the order of the kernels. So if two kernels are equally fast, either
is as likely to be ahead in a turn, whatever disturbs the machine and however the disturbances are
distributed. The interval below depends on nothing else.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# [library][shape] seconds of one call, all taken within one turn.
Turn = Sequence[Sequence[float]]


class Interval(NamedTuple):
    """A median of log ratios, and the bounds of the interval around it; `pairs` were measured."""

    median: float
    low: float
    high: float
    pairs: int


def log_ratios(turns: Sequence[Turn], library: int, base: int) -> list[float]:
    """Return log(time of `library` / time of `base`) for each turn.

    Over the shapes it is the mean, so the exponential is the ratio of geometric means.
    """
    return [
        statistics.fmean(math.log(a / b) for a, b in zip(turn[library], turn[base], strict=True))
        for turn in turns
    ]


def interval(samples: Sequence[float], level: float) -> Interval:
    """Return the median of samples and an interval for the true median.

    level: the chance that the true median lies outside. The bounds are two of the samples, chosen
    by the binomial distribution: no sample counts by its size, so outliers do not matter. With too
    few samples for this level the bounds are infinite.
    """
    ordered = sorted(samples)
    rank = _rank(len(ordered), level)
    low, high = (ordered[rank - 1], ordered[-rank]) if rank else (-math.inf, math.inf)
    return Interval(statistics.median(ordered), low, high, len(ordered))


@functools.cache
def _rank(count: int, level: float) -> int:
    """Return how far from either end of the ordered samples the bounds lie; 0: no such bounds."""
    outside, rank = 0, 0
    while rank < count:
        outside += math.comb(count, rank)  # fair coins, of `count`, that show at most `rank` heads
        if 2 * outside > level * 2**count:
            break
        rank += 1
    return rank


def spread(seconds: Sequence[float]) -> float:
    """Return the upper quartile of samples over the lower quartile: 1 on a quiet machine."""
    low, _, high = statistics.quantiles(seconds, n=4)
    return high / low
