"""Schedules that a build may use for a kernel: its own, or near kernels' by expected speedup.

The expected speedup over the default is the average speedup of the same decisions on near kernels,
read from their schedules and logs. Nearer kernels count more. Because an average over few kernels
is not trusted fully, a kernel without any gain is averaged in. A build needs neither
XGBoost nor the logs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from natc.operations import operations_of, tuned_as
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.records import SpaceVersion, Trial, read_log
from natc.store.schedules import Schedule, load_schedule, near
from natc.targets import Target

# A kernel at this distance counts 1/e of one at distance 0.
_REACH = 0.25
# The distance of kernels that differ in a bias, in the 16-bit type, or in the terms of a logit.
_STEP = 0.1
# How much the kernel without any gain counts, against 1 for a kernel at distance 0.
_DOUBT = 0.1
# A near kernel's schedule that is expected to gain less than this is not used.
WORTHWHILE = 1.02


class KernelGain(NamedTuple):
    """How many times as fast as the default some decisions are on one kernel."""

    spec: KernelSpec
    decisions: Mapping[str, int]
    speedup: float


class Usable(NamedTuple):
    """A schedule that a kernel may use, the kernel that it was tuned for, and its speedup here.

    speedup: measured if it is the kernel's own schedule (None if it has no times), else expected.
    """

    schedule: Schedule
    kernel: KernelSpec
    speedup: float | None


def usable_schedules(
    spec: KernelSpec,
    target: Target,
    operation: str,
    space: SpaceVersion | None = None,
    but: Path | None = None,
) -> tuple[list[Usable], list[Schedule]]:
    """Return the schedules for a kernel's operation, best first, and the outdated schedules.

    The first list has the kernel's own schedule alone, or else the schedules of all near kernels.
    space: schedules of another space, or of another version, are outdated; None: none is. but: a
    file to pass over. Whether decisions fit is not checked. Raises ScheduleError for a schedule
    that cannot be read.
    """
    kernels = [
        each
        for each in near(spec)
        if operation in map(tuned_as, operations_of(each, kind=target.kind))
    ]
    schedules: dict[KernelSpec, Schedule] = {}
    outdated = []
    for kernel in kernels:
        schedule = load_schedule(kernel, target, operation, but=but)
        if schedule is None:
            continue
        if space is not None and schedule.space != space:
            outdated.append(schedule)
        elif kernel == spec:
            return [Usable(schedule, spec, schedule.speedup)], outdated
        else:
            schedules[kernel] = schedule
    if not schedules:
        return [], outdated
    gains = [
        gain
        for kernel in kernels
        for gain in _gains_on(kernel, target, operation, schedules.get(kernel), space)
    ]
    usable = [
        Usable(schedule, kernel, expected_speedup(spec, schedule.decisions, gains))
        for kernel, schedule in schedules.items()
    ]
    # Of equals, the nearest one first, as in `near`.
    return sorted(usable, key=lambda each: -(each.speedup or 0.0)), outdated


def expected_speedup(
    spec: KernelSpec, decisions: Mapping[str, int], gains: Iterable[KernelGain]
) -> float:
    """Return the expected speedup of decisions over a kernel's default.

    gains: of any decisions, on kernels of the same design space. Without gains of these decisions
    the result is 1.
    """
    weights, logs = _DOUBT, 0.0
    for gain in gains:
        if gain.decisions == decisions:
            weight = math.exp(-_distance(spec, gain.spec) / _REACH)
            weights += weight
            logs += weight * math.log(gain.speedup)
    return math.exp(logs / weights)


def _gains_on(
    spec: KernelSpec,
    target: Target,
    operation: str,
    schedule: Schedule | None,
    space: SpaceVersion | None,
) -> list[KernelGain]:
    """Return the gains in a kernel's log and schedule, one for each set of decisions.

    A schedule's gain replaces a trial's, and a later trial's an earlier one's, on any machine.
    A predicted gain counts only if nothing was measured.
    """
    path = workspace.find_log(spec, target, operation)
    gains: dict[tuple[tuple[str, int], ...], KernelGain] = {}
    for record in [] if path is None else read_log(path)[0]:
        if isinstance(record, Trial) and record.ratio and record.space == (space or record.space):
            key = tuple(sorted(record.decisions.items()))
            gains[key] = KernelGain(spec, record.decisions, 1 / record.ratio)
    if schedule is not None and schedule.speedup:
        key = tuple(sorted(schedule.decisions.items()))
        gain = KernelGain(spec, schedule.decisions, schedule.speedup)
        if schedule.measured is not None or key not in gains:
            gains[key] = gain
    return list(gains.values())


def _distance(a: KernelSpec, b: KernelSpec) -> float:
    sizes = [abs(math.log(x / y)) for x, y in zip(a.kernel_size, b.kernel_size, strict=True)]
    steps = (a.rpb != b.rpb) + (a.dtype != b.dtype) + (a.terms != b.terms)
    return sum(sizes) / len(sizes) + _STEP * steps
