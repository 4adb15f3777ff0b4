"""Schedules, tuning logs and libraries as files, written without a search or a compiler."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from natc.host import environment
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store import records, schedules, workspace
from natc.store.records import SpaceVersion, Trial
from natc.targets import Target
from support.builder_double import Builder
from support.library_files import library_of

SPEC = KernelSpec.make(7, rpb=True)
TARGET = Target("llvm", "x86-64-v3")
HOST_DECISIONS = {"lanes": 8}
SECONDS = {"1x56x56x2x32": 1e-3, "1x7x7x16x32": 1e-3}


@functools.cache
def facts() -> records.Environment:
    """Return the facts about this machine, which take a few processes, collected once."""
    return environment.collect()


def make_schedule(**changes: Any) -> schedules.Schedule:
    """Return a schedule of SPEC for TARGET as a search would write it, with changed fields."""
    fields: dict[str, Any] = {
        "spec": SPEC.name,
        "target": TARGET.name,
        "space": SpaceVersion("cpu", 1),
        "decisions": {"tile": 1},
        "measured": schedules.Measurement(
            seconds=SECONDS,
            baseline_seconds={"1x56x56x2x32": 4e-3, "1x7x7x16x32": 1e-3},
            score=2e-3,
            objective="geometric mean",
            trials=2,
            gain=schedules.Gain(speedup=2.0, low=1.9, high=2.1, pairs=64),
        ),
        "environment": schedules.measured_on(facts()),
        "created": "2026-01-02T03:04:05Z",
        **changes,
    }
    return schedules.Schedule(**fields)


def make_host_schedule(spec: KernelSpec, **changes: Any) -> schedules.Schedule:
    """Return a schedule for this CPU whose decisions its design space has, in 10 us."""
    from natc.compiler.space import space_for

    host, shape = detect_host_cpu(), f"1x8x8x1x{spec.head_dim}"
    space = space_for(host)
    measured = schedules.Measurement(
        seconds={shape: 1e-5},
        baseline_seconds={shape: 2e-5},
        score=1e-5,
        objective="seconds",
        trials=1,
    )
    fields = {
        "spec": spec.name,
        "target": host.name,
        "space": SpaceVersion(space.name, space.version),
        "decisions": HOST_DECISIONS,
        "measured": measured,
    }
    return make_schedule(**(fields | changes))


def write_schedule_and_log() -> tuple[Path, Path]:
    """Write a schedule, and a log of a trial and a failed trial; return both files."""
    schedule = make_schedule(created=environment.now())
    log = workspace.log_path(SPEC, TARGET)
    records.append(log, facts())
    for number in range(2):
        trial = Trial(
            spec=SPEC.name,
            target=TARGET.name,
            space=SpaceVersion("cpu", 1),
            decisions={"tile": number},
            seconds=None if number else SECONDS,
            error="too slow" if number else None,
            environment=facts().id,
            timestamp=environment.now(),
            trial=number,
        )
        records.append(log, trial)
    return schedules.save_schedule(schedule), log


def write_library() -> tuple[Path, Path]:
    """Write a forward for this CPU that is no code, with a true manifest; return both files."""
    path = Builder()(SPEC, detect_host_cpu(), workspace.library_dir(), families=("forward",))
    return library_of(path), path
