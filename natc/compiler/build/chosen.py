"""Which decisions a build uses: its own schedules, those of near kernels, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from natc.compiler.build.lower import scheduled
from natc.compiler.space import space_for
from natc.errors import ScheduleError
from natc.operations import FORWARD, operations_of, tuned_as
from natc.spec import KernelSpec
from natc.store.schedules import Schedule, joined, load_schedule, near
from natc.targets import Target


@dataclass(frozen=True)
class Chosen:
    """Decisions for one kernel on one target, and where they come from.

    decisions: of all operations, as `natc.store.schedules.joined` names them.
    origin: `tuned`, `borrowed` or `untuned`, of the forward. note: the same for a person, in a
    sentence. schedule: the forward's. others: schedules of other operations that have one.
    """

    decisions: dict[str, int]
    origin: str
    note: str
    schedule: Schedule | None = None
    others: tuple[Schedule, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what a manifest says of it, as JSON values."""
        found: dict[str, Any] = {"origin": self.origin, "decisions": self.decisions}
        if self.schedule is not None:
            found |= _evidence(self.schedule)
        if self.others:
            found["others"] = {one.operation: _evidence(one) for one in self.others}
        return found


def choose(
    spec: KernelSpec,
    target: Target,
    *,
    untuned: bool = False,
    operations: Sequence[str] | None = None,
) -> Chosen:
    """Return the decisions for a kernel; raises ScheduleError for a schedule that cannot be read.

    An operation with no schedule of its own takes that of the nearest kernel (`schedules.near`)
    that has one whose decisions fit. untuned: take none. operations: for which, by default all.
    """
    what = f"{spec.name} for {target.name}"
    if untuned:
        return Chosen({}, "untuned", f"{what}: the untuned default schedule, as asked.")
    wanted = operations_of(spec) if operations is None else operations
    decisions: dict[str, int] = {}
    others: list[Schedule] = []
    origin, note, forward = "untuned", "", None
    for operation in dict.fromkeys((FORWARD, *map(tuned_as, wanted))):
        found, owner, outdated = _find(spec, target, operation)
        if operation == FORWARD:
            origin, note = _told(spec, target, found, owner, outdated)
            forward = found
        elif found is not None:
            of = "" if owner == spec else f" (that of {owner.name})"
            note += f" {operation}: its tuned schedule of {found.created}{of}."
            others.append(found)
        elif outdated:
            note += f" {operation}: untuned{outdated}."
        if found is not None:
            decisions |= joined(found.decisions, operation)
    return Chosen(decisions, origin, note, forward, tuple(others))


def _find(
    spec: KernelSpec, target: Target, operation: str
) -> tuple[Schedule | None, KernelSpec, str]:
    """Return the schedule for an operation, the kernel that it is of, and what was passed over."""
    space = space_for(target, operation, spec)
    outdated = ""
    for candidate in near(spec):
        if operation not in map(tuned_as, operations_of(candidate)):
            continue
        found = load_schedule(candidate, target, operation)
        if found is None:
            continue
        if (found.space.name, found.space.version) != (space.name, space.version):
            outdated = outdated or (
                f" (the schedule of {candidate.name} is of design space {found.space.name} "
                f"version {found.space.version}, and this natc has {space.name} version "
                f"{space.version})"
            )
            continue
        if candidate in (spec, replace(spec, rpb=not spec.rpb)) or _fits(
            spec, target, operation, found
        ):
            return found, candidate, ""
    return None, spec, outdated


def _fits(spec: KernelSpec, target: Target, operation: str, schedule: Schedule) -> bool:
    """Return whether a kernel's space has the decisions that were made for another's."""
    try:
        scheduled(spec, target, schedule.decisions, operation=operation)
    except ScheduleError:
        return False
    return True


def _told(
    spec: KernelSpec, target: Target, found: Schedule | None, owner: KernelSpec, outdated: str
) -> tuple[str, str]:
    """Return where the forward's decisions come from, in a word and in a sentence."""
    what = f"{spec.name} for {target.name}"
    if found is not None and owner == spec:
        return "tuned", f"{what}: its tuned schedule of {found.created}."
    if found is not None:
        return "borrowed", f"{what}: the schedule tuned for {owner.name}; it has none of its own."
    note = f"{what}: the untuned default schedule; no tuned one was found{outdated}."
    if spec.value_dim == spec.head_dim and spec.dtype != "float64":
        note += f" To tune: {tune_command(spec, target)}"
    return "untuned", note


def _evidence(schedule: Schedule) -> dict[str, Any]:
    return {
        "of": schedule.spec,
        "space": msgspec.to_builtins(schedule.space),
        "created": schedule.created,
    }


def tune_command(spec: KernelSpec, target: Target) -> str:
    """Return the command that searches a schedule for a kernel on a target."""
    rpb = "--rpb" if spec.rpb else "--no-rpb"
    rank = "" if spec.rank == 2 or "x" in spec.kernel_text else f"--rank {spec.rank} "
    return (
        f"natc tune --kernel {spec.kernel_text} {rank}--target {target.name} "
        f"--head-dim {spec.head_dim} --dtype {spec.dtype} {rpb}"
    )
