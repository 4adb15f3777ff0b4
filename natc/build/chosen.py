"""Which decisions a build uses: its own schedule, a sibling's, or none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from natc.schedules import Schedule, load_schedule
from natc.space import space_for
from natc.spec import KernelSpec
from natc.targets import Target


@dataclass(frozen=True)
class Chosen:
    """Decisions for one kernel on one target, and where they come from.

    origin: `tuned`, `borrowed` or `untuned`. note: the same for a person, in a sentence.
    """

    decisions: dict[str, int]
    origin: str
    note: str
    schedule: Schedule | None = None

    def record(self) -> dict[str, Any]:
        """Return what a manifest says of it, as JSON values."""
        found: dict[str, Any] = {"origin": self.origin, "decisions": self.decisions}
        if self.schedule is not None:
            found["of"] = self.schedule.spec
            found["space"] = msgspec.to_builtins(self.schedule.space)
            found["created"] = self.schedule.created
        return found


def choose(spec: KernelSpec, target: Target, *, untuned: bool = False) -> Chosen:
    """Return the decisions for a kernel; raises ScheduleError for a schedule that cannot be read.

    A kernel with no schedule of its own takes that of the kernel that differs in the relative
    positional bias alone; its loops are the same. untuned: take none.
    """
    space = space_for(target, spec=spec)
    what = f"{spec.name} for {target.name}"
    if untuned:
        return Chosen({}, "untuned", f"{what}: the untuned default schedule, as asked.")
    sibling = replace(spec, rpb=not spec.rpb)
    outdated = ""
    for candidate in (spec, sibling):
        found = load_schedule(candidate, target)
        if found is None:
            continue
        if (found.space.name, found.space.version) != (space.name, space.version):
            outdated = (
                f" (the schedule of {candidate.name} is of design space {found.space.name} "
                f"version {found.space.version}, and this natc has {space.name} version "
                f"{space.version})"
            )
            continue
        if candidate is spec:
            note = f"{what}: its tuned schedule of {found.created}."
            return Chosen(found.decisions, "tuned", note, found)
        note = f"{what}: the schedule tuned for {sibling.name}; it has none of its own."
        return Chosen(found.decisions, "borrowed", note, found)
    note = f"{what}: the untuned default schedule; no tuned one was found{outdated}."
    searched = space.name == space_for(target).name
    if searched and spec.rank == 2 and spec.value_dim == spec.head_dim and spec.dtype != "float64":
        note += f" To tune: {tune_command(spec, target)}"
    return Chosen({}, "untuned", note)


def tune_command(spec: KernelSpec, target: Target) -> str:
    """Return the command that searches a schedule for a kernel on a target."""
    rpb = "--rpb" if spec.rpb else "--no-rpb"
    return (
        f"natc tune --kernel {spec.kernel_text} --target {target.name} --head-dim {spec.head_dim} "
        f"--dtype {spec.dtype} {rpb}"
    )
