"""The schedule behind a kernel, shown: decisions, times, where and when they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from natc import workspace
from natc.cli import output
from natc.cli.output import seconds_text
from natc.errors import ScheduleError
from natc.schedules import Schedule, near, read_schedule
from natc.spec import KernelSpec
from natc.targets import Target

if TYPE_CHECKING:
    from natc.runtime import Library


def of_library(library: Library, target: Target) -> dict[str, Any]:
    """Return what the code for a target in a library was made from; its times where they are here.

    A manifest holds the decisions; the times are in the schedule's file, if it is still the same.
    """
    key = target.arch
    record = library.manifest.schedule.get(key) or {}
    found = {
        "origin": record.get("origin"),
        "of": record.get("of"),
        "target": target.name,
        "space": record.get("space"),
        "decisions": record.get("decisions"),
        "created": record.get("created"),
        "path": None,
        "measured": None,
        "environment": None,
    }
    if record.get("of"):
        path, schedule = _find(KernelSpec.parse(record["of"]), target)
        if schedule is not None and schedule.created == record.get("created"):
            found |= _evidence(path, schedule)
    return found


def on_file(spec: KernelSpec, target: Target) -> dict[str, Any] | None:
    """Return the schedule that lies ready for a kernel that is not built, or its sibling's."""
    for candidate in near(spec):
        path, schedule = _find(candidate, target)
        if schedule is not None:
            return of_schedule(path, schedule, "tuned" if candidate == spec else "borrowed")
    return None


def of_schedule(path: Path | None, schedule: Schedule, origin: str) -> dict[str, Any]:
    """Return what is in a schedule."""
    return {
        "origin": origin,
        "of": schedule.spec,
        "target": schedule.target,
        "space": msgspec.to_builtins(schedule.space),
        "decisions": schedule.decisions,
        "created": schedule.created,
        **_evidence(path, schedule),
    }


def _find(spec: KernelSpec, target: Target) -> tuple[Path | None, Schedule | None]:
    path = workspace.find_schedule(spec, target)
    if path is None:
        return None, None
    try:
        return path, read_schedule(path)
    except ScheduleError as error:
        output.stderr().print(f"problem: {error}")
        return path, None


def _evidence(path: Path | None, schedule: Schedule) -> dict[str, Any]:
    measured = msgspec.to_builtins(schedule.measured)
    return {
        "path": path,
        "measured": {**measured, "speedup": schedule.measured.speedup},
        "environment": msgspec.to_builtins(schedule.environment),
    }


def show(found: dict[str, Any]) -> None:
    """Print what `of_library`, `on_file` or `of_schedule` returned on stdout."""
    console = output.stdout()
    console.print(f"schedule for {found['target']}", style="bold")
    if not found["of"]:
        # Libraries that an older natc built say less.
        console.print(f"  {found['origin'] or 'unknown'}: no search was made for this kernel")
        return
    whose = "" if found["origin"] == "tuned" else f", {found['origin']}"
    space = found["space"] or {}
    console.print(
        f"  of {found['of']}{whose}, found {found['created']}, "
        f"in space {space.get('name')} {space.get('version')}"
    )
    chosen = ", ".join(f"{name} {value}" for name, value in (found["decisions"] or {}).items())
    console.print(f"  decisions: {chosen}")
    measured = found["measured"]
    if measured is None:
        console.print("  measured: the schedule's file is not here, or is of another search")
        return
    where = found["environment"]
    place = where["gpu"] or f"{where['cpu']}, {where['cores']} cores"
    console.print(f"  measured: on {place}; {measured['trials']} candidates")
    console.print(f"  file: {found['path']}")
    table = output.table(
        "", "input", "tuned", "untuned", "ratio", right=("tuned", "untuned", "ratio")
    )
    for shape, seconds in measured["seconds"].items():
        before = measured["baseline_seconds"].get(shape)
        table.add_row(
            shape,
            seconds_text(seconds),
            seconds_text(before) if before else "-",
            f"{before / seconds:.2f}" if before else "-",
        )
    console.print(table)
