"""The events of a search of four candidates, for tests of the display of `natc tune`."""

from __future__ import annotations

from pathlib import Path

from natc.tune.events import SearchFinished, Started, TrialMeasured

START = Started(
    spec="na2d_k7_d32_float32_rpb",
    target="llvm-x86-64-v3",
    shapes=("1x56x56x2x32",),
    baseline=4e-3,
    best=4e-3,
    resumed_trials=0,
    planned=None,
    minutes=2.0,
)
TRIALS = [
    TrialMeasured(1, 3e-3, 3e-3, 0),
    TrialMeasured(2, None, 3e-3, 1, "did not compile"),
    TrialMeasured(3, 3.5e-3, 3e-3, 1),
    TrialMeasured(4, 1e-3, 1e-3, 1),
]


def finish(*, interrupted: bool = False) -> SearchFinished:
    return SearchFinished(
        schedule_path=Path("/w/schedules/x.json"),
        log_path=Path("/w/tuning_logs/x.jsonl"),
        best=1e-3,
        baseline=4e-3,
        trials=4,
        failures=1,
        seconds=12.0,
        interrupted=interrupted,
    )
