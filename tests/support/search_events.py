"""The events of a search of four candidates, for tests of the display of `natc tune`."""

from __future__ import annotations

from pathlib import Path

from natc.store.schedules import Gain
from natc.tune.events import SearchFinished, Started, TrialMeasured

START = Started(
    spec="na2d_k7_d32_float32_rpb",
    target="llvm-x86-64-v3",
    shapes=("1x56x56x2x32",),
    baseline=4e-3,
    best=1.0,
    resumed_trials=0,
    planned=None,
    minutes=2.0,
)
TRIALS = [
    TrialMeasured(1, 1.333, 1.333, 0),
    TrialMeasured(2, None, 1.333, 1, "did not compile"),
    TrialMeasured(3, 1.1, 1.333, 1),
    TrialMeasured(4, 4.0, 4.0, 1),
]
GAIN = Gain(speedup=3.9, low=3.85, high=3.97, pairs=64)


def finish(*, interrupted: bool = False) -> SearchFinished:
    """Return the end of a search that wrote a schedule, or that was stopped."""
    message = "the best candidate is 3.90 times as fast as the default, 3.85 to 3.97"
    return SearchFinished(
        outcome="interrupted" if interrupted else "saved",
        message="stopped before the best candidates were compared" if interrupted else message,
        schedule_path=None if interrupted else Path("/w/schedules/x.json"),
        log_path=Path("/w/tuning_logs/x.jsonl"),
        gain=None if interrupted else GAIN,
        baseline=4e-3,
        trials=4,
        failures=1,
        seconds=12.0,
    )
