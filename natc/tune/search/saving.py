"""Writes the schedule of a search's winner."""

from __future__ import annotations

import statistics
from pathlib import Path

from natc.host import environment
from natc.store.records import Comparison, Environment
from natc.store.schedules import Gain, Measurement, Schedule, measured_on, save_schedule

_OBJECTIVE = (
    "geometric mean over the shapes of the seconds of one call, the lower quartile of many turns"
)


def save_winner(winner: Comparison, machine: Environment, trials: int) -> Path:
    """Write the schedule of a candidate that beat the default, and return its file.

    winner: its comparison with the default. trials: their number in the log.
    """
    return save_schedule(
        Schedule(
            spec=winner.spec,
            target=winner.target,
            operation=winner.operation,
            space=winner.space,
            decisions=winner.decisions,
            measured=Measurement(
                seconds=winner.seconds,
                baseline_seconds=winner.base_seconds,
                score=statistics.geometric_mean(winner.seconds.values()),
                objective=_OBJECTIVE,
                trials=trials,
                gain=gain_of(winner),
            ),
            environment=measured_on(machine),
            created=environment.now(),
        )
    )


def gain_of(winner: Comparison) -> Gain:
    """Return the part of a comparison that a schedule keeps."""
    return Gain(speedup=winner.speedup, low=winner.low, high=winner.high, pairs=winner.pairs)
