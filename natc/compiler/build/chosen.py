"""Chooses the decisions of a build: the kernel's own schedules, a near kernel's, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from natc.compiler.build.lower import scheduled
from natc.compiler.space import space_for
from natc.errors import ScheduleError
from natc.operations import FORWARD, operations_of, tuned_as
from natc.spec import KernelSpec
from natc.store.nearest import WORTHWHILE, usable_schedules
from natc.store.records import SpaceVersion
from natc.store.schedules import Schedule, joined
from natc.targets import Target


@dataclass(frozen=True)
class Chosen:
    """Decisions for one kernel on one target, and where they come from.

    decisions: for all operations, under the names of `natc.store.schedules.joined`.
    origin: `tuned`, `predicted`, `borrowed` or `untuned`: where the forward's decisions come from.
    note: the same in a sentence, for a person. schedule: the forward's. other_schedules: the
    schedules of other operations, if they have any.
    """

    decisions: dict[str, int]
    origin: str
    note: str
    schedule: Schedule | None = None
    other_schedules: tuple[Schedule, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the entry of a manifest, as JSON values."""
        entry: dict[str, Any] = {"origin": self.origin, "decisions": self.decisions}
        if self.schedule is not None:
            entry |= _evidence(self.schedule)
        if self.other_schedules:
            entry["others"] = {each.operation: _evidence(each) for each in self.other_schedules}
        return entry


def choose(
    spec: KernelSpec,
    target: Target,
    *,
    untuned: bool = False,
    operations: Sequence[str] | None = None,
) -> Chosen:
    """Return the decisions for a kernel; raises ScheduleError for a schedule that cannot be read.

    An operation without a schedule of its own takes a near kernel's schedule that fits: the one
    that is expected to be the fastest (`natc.store.nearest`), or the default if none is expected
    to be faster. untuned: use no schedule. operations: which ones to choose for, by default all.
    """
    what = f"{spec.name} for {target.name}"
    if untuned:
        return Chosen({}, "untuned", f"{what}: the untuned default schedule, as asked.")
    wanted = operations_of(spec, kind=target.kind) if operations is None else operations
    decisions: dict[str, int] = {}
    other_schedules: list[Schedule] = []
    origin, note, forward = "untuned", "", None
    for operation in dict.fromkeys((FORWARD, *map(tuned_as, wanted))):
        schedule, owner, reason = _find(spec, target, operation)
        if operation == FORWARD:
            origin, note = _told(spec, target, schedule, owner, reason)
            forward = schedule
        elif schedule is not None:
            of = "" if owner == spec else f" (tuned for {owner.name}; {reason})"
            note += f" {operation}: its {schedule.origin} schedule of {schedule.created}{of}."
            other_schedules.append(schedule)
        elif reason:
            note += f" {operation}: untuned{reason}."
        if schedule is not None:
            decisions |= joined(schedule.decisions, operation)
    return Chosen(decisions, origin, note, forward, tuple(other_schedules))


def schedule_in_use(
    spec: KernelSpec, target: Target, operation: str, *, but: Path | None = None
) -> Schedule | None:
    """Return the schedule that a build takes for an operation, or None for the default decisions.

    but: a schedule file to pass over. Raises ScheduleError for a schedule that cannot be read.
    """
    return _find(spec, target, operation, but)[0]


def _find(
    spec: KernelSpec, target: Target, operation: str, but: Path | None = None
) -> tuple[Schedule | None, KernelSpec, str]:
    """Return (schedule or None, the kernel it was tuned for, why it was chosen or not, or "").

    A schedule is outdated if it was made in another version of the design space. but: a file to
    pass over.
    """
    space = space_for(target, operation, spec)
    version = SpaceVersion(space.name, space.version)
    usable, outdated = usable_schedules(spec, target, operation, version, but)
    for schedule, kernel, speedup in usable:
        if kernel == spec:
            return schedule, spec, ""
        expected = f"expected to be {speedup:.2f} times as fast as the default"
        if (speedup or 0.0) < WORTHWHILE:
            return None, spec, f" (the schedule of {kernel.name} is {expected})"
        is_sibling = kernel == replace(spec, rpb=not spec.rpb)
        if is_sibling or _fits(spec, target, operation, schedule):
            return schedule, kernel, expected
    for schedule in outdated[:1]:
        reason = (
            f" (the schedule of {schedule.spec} was made in design space {schedule.space.name} "
            f"version {schedule.space.version}, and this natc has {space.name} version "
            f"{space.version})"
        )
        return None, spec, reason
    return None, spec, ""


def _fits(spec: KernelSpec, target: Target, operation: str, schedule: Schedule) -> bool:
    """Return whether the decisions of another kernel's schedule are valid for this kernel."""
    try:
        scheduled(spec, target, schedule.decisions, operation=operation)
    except ScheduleError:
        return False
    return True


def _told(
    spec: KernelSpec, target: Target, schedule: Schedule | None, owner: KernelSpec, reason: str
) -> tuple[str, str]:
    """Return (origin, note) of the forward's decisions: see `Chosen`."""
    what = f"{spec.name} for {target.name}"
    if schedule is not None and owner == spec:
        if schedule.predicted is not None:
            return "predicted", f"{what}: its schedule of {schedule.created}, {schedule.evidence}."
        return "tuned", f"{what}: its tuned schedule of {schedule.created}."
    if schedule is not None:
        why = f"it has none of its own, and this one is {reason}"
        return "borrowed", f"{what}: the schedule tuned for {owner.name}; {why}."
    note = f"{what}: the untuned default schedule; no tuned one was found{reason}."
    if spec.value_dim == spec.head_dim and spec.dtype != "float64":
        note += f" To tune: {tune_command(spec, target)}"
    return "untuned", note


def _evidence(schedule: Schedule) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "of": schedule.spec,
        "space": msgspec.to_builtins(schedule.space),
        "created": schedule.created,
    }
    if schedule.predicted is not None:
        evidence["predicted"] = msgspec.to_builtins(schedule.predicted)
    return evidence


def tune_command(spec: KernelSpec, target: Target) -> str:
    """Return the command that searches a schedule for a kernel on a target."""
    rpb = "--rpb" if spec.rpb else "--no-rpb"
    rank = "" if spec.rank == 2 or "x" in spec.kernel_text else f"--rank {spec.rank} "
    return (
        f"natc tune --kernel {spec.kernel_text} {rank}--target {target.name} "
        f"--head-dim {spec.head_dim} --dtype {spec.dtype} {rpb}"
    )
