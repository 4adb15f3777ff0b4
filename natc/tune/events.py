"""Events of a search, for a display or a log. Plain data: a watcher needs no compiler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Started:
    """The search begins, or goes on where an earlier one stopped.

    spec, target: names. shapes: inputs `BxHxWxheadsxhead_dim` that are measured.
    baseline: score of the untuned kernel. best: score of the best kernel known so far.
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

    index: its number in this run, from 1. score: seconds, or None when it failed. best: the best
    score so far. failures: number of candidates of this run that failed. error: why this one did.
    """

    index: int
    score: float | None
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

    schedule_path: the winner's file, or None if no candidate was measured. In that case no
    schedule was written, and an existing one was not changed. best, baseline: scores of the winner
    and of the untuned kernel. trials: candidates measured in this run; failures: the number of
    them that failed. seconds: duration of this run. interrupted: whether the user stopped it.
    """

    schedule_path: Path | None
    log_path: Path
    best: float
    baseline: float
    trials: int
    failures: int
    seconds: float
    interrupted: bool = False


Event: TypeAlias = Started | TrialMeasured | CandidatesBuilt | Note | SearchFinished
