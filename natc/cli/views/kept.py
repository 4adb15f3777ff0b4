"""Decides whether the quickstart keeps a tuned schedule: by times beside the default kernel."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from natc.errors import NatcError
from natc.store.files import write_atomically

if TYPE_CHECKING:
    from natc.bench.results import Results

DEFAULT, TUNED = "default kernel", "tuned kernel"


class Comparison(NamedTuple):
    """How many times as fast as the default kernel the tuned one is, and the bounds of that.

    Over the shapes it is the geometric mean; the bounds hold the true number with near certainty.
    """

    speedup: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.speedup:.2f} times as fast, {self.low:.2f} to {self.high:.2f}"


class Kept(NamedTuple):
    """What the quickstart keeps. kernel: DEFAULT or TUNED; message: which, and why."""

    kernel: str
    comparison: Comparison | None
    message: str


def compare(times: Results) -> Comparison:
    """Return the comparison of the tuned kernel with the default, which is the first contestant.

    Raises NatcError if one of them was not timed on every shape.
    """
    speedups: list[Comparison] = []
    for problem in times.problems:
        rows = times.of(problem)
        for name in (DEFAULT, TUNED):
            if rows[name].median_seconds is None:
                raise NatcError(f"the {name} at {times.label(problem)}: {rows[name].note}")
        row = rows[TUNED]
        if row.ratio_to_first is None or row.ratio_interval is None:
            raise NatcError(f"{times.label(problem)}: too few samples to compare two kernels.")
        low, high = row.ratio_interval
        speedups.append(Comparison(1 / row.ratio_to_first, 1 / high, 1 / low))
    # Each interval holds its number, so the means of the bounds hold the mean.
    return Comparison(*map(statistics.geometric_mean, zip(*speedups, strict=True)))


class SavedSchedule:
    """The schedule file of a kernel in the workspace, as it was before a search."""

    def __init__(self, path: Path) -> None:
        """Remember the file at `path`, if there is one."""
        self.path = path
        self._before = path.read_bytes() if path.is_file() else None

    def restore(self) -> None:
        """Undo what the search wrote."""
        if self._before is not None:
            write_atomically(self.path, self._before)
        else:
            self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def keep(comparison: Comparison | None, schedule: SavedSchedule, *, saved: bool) -> Kept:
    """Keep the tuned schedule only if it is faster than the default, beyond the noise.

    comparison: None if the two kernels are the same. saved: whether the search wrote the schedule.
    A schedule that is slower goes, and one that this search wrote goes unless it is faster.
    """
    if comparison is None:
        if saved:
            schedule.restore()
        return Kept(DEFAULT, None, "the tuned kernel is the default: nothing was saved")
    text = f"the tuned kernel is {comparison}"
    if comparison.low > 1:
        return Kept(TUNED, comparison, f"{text}: kept")
    if comparison.high < 1:
        was_there = schedule.path.is_file()
        schedule.remove()
        end = "nothing was saved" if saved or not was_there else f"{schedule.path} was removed"
        return Kept(DEFAULT, comparison, f"{text}: the default is faster, {end}")
    if saved:
        schedule.restore()
        return Kept(DEFAULT, comparison, f"{text}: the default is as fast, nothing was saved")
    return Kept(TUNED, comparison, f"{text}: as fast as the default, and nothing new was saved")
