"""The statistics that decide between two kernels."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from natc.tune.measure.pairs import interval, log_ratios, spread

pytestmark = pytest.mark.quick


def test_ratios_are_taken_within_a_turn() -> None:
    # The machine is ten times slower in the second turn.
    turns = [[[1.0, 4.0], [2.0, 2.0]], [[10.0, 40.0], [20.0, 20.0]], [[1.0, 1.0], [2.0, 2.0]]]
    assert log_ratios(turns, 1, 0) == pytest.approx([0.0, 0.0, math.log(2)])
    assert log_ratios(turns, 0, 1) == pytest.approx([0.0, 0.0, -math.log(2)])


@pytest.mark.parametrize("count", [4, 8, 9])
@pytest.mark.parametrize("level", [1 / 8, 0.05, 0.01])
def test_the_interval_misses_the_median_as_rarely_as_promised(count: int, level: float) -> None:
    """The true median is 0: each way in which samples may lie above or below is as likely."""
    missed = 0
    for signs in itertools.product((-1, 1), repeat=count):
        bounds = interval([sign * (1 + place) for place, sign in enumerate(signs)], level)
        assert bounds.low <= bounds.median <= bounds.high and bounds.pairs == count
        missed += not bounds.low <= 0 <= bounds.high
    assert missed <= level * 2**count
    # Bounds one sample further in would miss too often.
    if math.isfinite(bounds.low):
        rank = round(bounds.low)  # the samples are 1, 2, ...
        outside = sum(math.comb(count, k) for k in range(rank + 1))
        assert 2 * outside > level * 2**count


def test_with_too_few_samples_nothing_is_certain() -> None:
    assert interval([-1.0] * 3, 1 / 8).low == -math.inf
    assert interval([-1.0] * 4, 1 / 8)[:3] == (-1.0, -1.0, -1.0)


def test_outliers_do_not_count_by_their_size() -> None:
    chance = random.Random(0)
    samples = [chance.gauss(-0.1, 0.02) for _ in range(60)]
    quiet, disturbed = interval(samples, 0.01), interval([*samples, 50.0, -50.0, 40.0], 0.01)
    assert quiet.median == pytest.approx(disturbed.median, abs=0.01)
    assert disturbed.high < -0.05 and quiet.high < -0.05


def test_the_spread_of_times_is_a_factor() -> None:
    assert spread([1.0] * 8) == 1
    assert spread([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]) == 2
