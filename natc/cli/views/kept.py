"""Decides whether the quickstart keeps a tuned schedule: by times beside the default kernel."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from natc.errors import NatcError
from natc.store.files import write_atomically

if TYPE_CHECKING:
    from natc.bench.results import Results

DEFAULT, TUNED = "default kernel", "tuned kernel"


class Speedup(NamedTuple):
    """How many times as fast as the default kernel the tuned one is, and the bounds of that.

    Over the shapes it is the geometric mean; the bounds hold the true number with near certainty.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = "with too few samples to be sure"
        if self.high < math.inf:
            bounds = f"{self.low:.2f} to {self.high:.2f}"
        return f"{self.median:.2f} times as fast, {bounds}"


class KeptKernel(NamedTuple):
    """The kernel that the quickstart keeps, DEFAULT or TUNED; message: which, and why."""

    kernel: str
    comparison: Speedup | None
    message: str


def compare(times: Results) -> Speedup:
    """Return the comparison of the tuned kernel with the default, which is the first contestant.

    Raises NatcError if a kernel was not timed on every shape.
    """
    speedups: list[Speedup] = []
    for problem in times.problems:
        rows = times.of(problem)
        for name in (DEFAULT, TUNED):
            if rows[name].median_seconds is None:
                raise NatcError(f"the {name} at {times.label(problem)}: {rows[name].note}")
        ratio, interval = rows[TUNED].ratio_to_first or 1.0, rows[TUNED].ratio_interval
        bounds = (1 / interval[1], 1 / interval[0]) if interval else (0.0, math.inf)
        speedups.append(Speedup(1 / ratio, *bounds))
    # Each interval holds its number, so the means of the bounds hold the mean.
    medians, lows, highs = zip(*speedups, strict=True)
    sure = min(lows) > 0
    return Speedup(
        statistics.geometric_mean(medians),
        statistics.geometric_mean(lows) if sure else 0.0,
        statistics.geometric_mean(highs) if sure else math.inf,
    )


class SavedSchedule:
    """A kernel's schedule file in the workspace, and its content before a search."""

    def __init__(self, path: Path) -> None:
        """Remember the file at `path`, if there is one."""
        self.path = path
        self._before = path.read_bytes() if path.is_file() else None

    def restore(self) -> None:
        """Put the earlier content back, or remove the file if there was none."""
        if self._before is not None:
            write_atomically(self.path, self._before)
        else:
            self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def keep(comparison: Speedup | None, schedule: SavedSchedule, *, saved: bool) -> KeptKernel:
    """Keep the tuned schedule only if it is faster than the default, beyond the noise.

    comparison: None if the two kernels are the same. saved: whether the search wrote the schedule.
    A slower schedule is removed. A schedule of this search stays only if it is faster. Too
    few samples decide nothing: then the search's own comparison counts.
    """
    if comparison is None:
        if saved:
            schedule.restore()
        return KeptKernel(DEFAULT, None, "the tuned kernel is the default: nothing was saved")
    text = f"the tuned kernel is {comparison}"
    if comparison.low > 1:
        return KeptKernel(TUNED, comparison, f"{text}: kept")
    if comparison.high < 1:
        was_there = schedule.path.is_file()
        schedule.remove()
        end = "nothing was saved" if saved or not was_there else f"{schedule.path} was removed"
        return KeptKernel(DEFAULT, comparison, f"{text}: the default is faster, {end}")
    if saved and comparison.high < math.inf:
        schedule.restore()
        return KeptKernel(
            DEFAULT, comparison, f"{text}: the default is as fast, nothing was saved"
        )
    if saved:
        return KeptKernel(TUNED, comparison, f"{text}: kept, because the search compared longer")
    return KeptKernel(
        TUNED, comparison, f"{text}: as fast as the default, and nothing new was saved"
    )
