"""Events of a search, for a display or a log. Plain data: a watcher needs no compiler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from natc.store.schedules import Gain


@dataclass(frozen=True, slots=True)
class Started:
    """The search begins, or goes on where an earlier one stopped.

    spec, target: names. shapes: inputs `BxHxWxheadsxhead_dim` that are measured.
    baseline: seconds of the default, geometric mean over the shapes. best: how many times as fast
    as the default the best earlier candidate seems; 1 without one.
    resumed_trials: trials the log already held. planned: trials this run may measure, or None
    when only time ends it. minutes: time this run may take, or None.
    """

    spec: str
    target: str
    shapes: tuple[str, ...]
    baseline: float
    best: float
    resumed_trials: int
    planned: int | None
    minutes: float | None


@dataclass(frozen=True, slots=True)
class TrialMeasured:
    """One candidate was measured, or failed.

    index: its number in this run, from 1. speedup: how many times as fast as the default it seems,
    or None when it failed. best: the largest speed-up so far, at least 1. failures: number of
    candidates of this run that failed. error: why this one did.
    """

    index: int
    speedup: float | None
    best: float
    failures: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CandidatesBuilt:
    """Candidates of a round were compiled.

    made: number of candidates that are ready, out of `planned`. dropped: number of candidates that
    are not worth measuring.
    """

    made: int
    planned: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should know, such as a damaged line of the log."""

    message: str


@dataclass(frozen=True, slots=True)
class SearchFinished:
    """The search is over; everything measured is in the log.

    outcome: `saved`; `not faster` if no candidate is faster than the default and the schedule in
    use; `undecided` if the noise is too large to tell; `unmeasured` if no candidate was measured;
    `failed` if every candidate failed; `interrupted` if the user stopped it. Only `saved` writes a
    schedule, schedule_path, with the gain that it holds. message: the outcome in words. baseline:
    seconds of the default, geometric mean over the shapes. trials: candidates measured in this
    run; failures: the number of them that failed. seconds: duration of this run.
    """

    outcome: str
    message: str
    schedule_path: Path | None
    log_path: Path
    gain: Gain | None
    baseline: float
    trials: int
    failures: int
    seconds: float

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped the search."""
        return self.outcome == "interrupted"


Event: TypeAlias = Started | TrialMeasured | CandidatesBuilt | Note | SearchFinished
