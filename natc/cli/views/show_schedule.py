"""Shows the schedule of a kernel: decisions, times, and where and when they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from natc.cli import output
from natc.cli.output import seconds_text
from natc.errors import ScheduleError
from natc.operations import FORWARD, tuned_as
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.nearest import WORTHWHILE, usable_schedules
from natc.store.schedules import Schedule, own_decisions, read_schedule
from natc.targets import Target

if TYPE_CHECKING:
    from natc.runtime import Library


def of_library(library: Library, target: Target, operation: str) -> dict[str, Any]:
    """Return the schedule of an operation's code for a target, with times if its file is here.

    A manifest has the decisions; the schedule's file has the times, if it is still the same.
    """
    operation = tuned_as(operation)
    record = library.manifest.schedule.get(target.arch) or {}
    evidence = record if operation == FORWARD else (record.get("others") or {}).get(operation, {})
    origin = record.get("origin") if operation == FORWARD else "untuned"
    if operation != FORWARD and evidence:
        own = "predicted" if evidence.get("predicted") else "tuned"
        origin = own if evidence.get("of") == library.spec.name else "borrowed"
    facts = {
        "operation": operation,
        "origin": origin,
        "of": evidence.get("of"),
        "target": target.name,
        "space": evidence.get("space"),
        "decisions": own_decisions(record.get("decisions") or {}, operation),
        "created": evidence.get("created"),
        "path": None,
        "measured": None,
        "predicted": evidence.get("predicted"),
        "environment": None,
    }
    if evidence.get("of"):
        path, schedule = _find(KernelSpec.parse(evidence["of"]), target, operation)
        if schedule is not None and schedule.created == evidence.get("created"):
            facts |= _evidence(path, schedule)
    return facts


def all_of_library(library: Library, target: Target) -> list[dict[str, Any]]:
    """Return `of_library` for the forward and each operation with a schedule."""
    record = library.manifest.schedule.get(target.arch) or {}
    return [of_library(library, target, name) for name in (FORWARD, *(record.get("others") or ()))]


def on_file(spec: KernelSpec, target: Target, operation: str) -> dict[str, Any] | None:
    """Return the schedule that a build of a kernel would use: its own, or a near kernel's."""
    try:
        usable, _ = usable_schedules(spec, target, tuned_as(operation))
    except ScheduleError as error:
        output.stderr().print(f"problem: {error}")
        return None
    for schedule, kernel, speedup in usable[:1]:
        if kernel == spec or (speedup or 0.0) >= WORTHWHILE:
            path = workspace.find_schedule(kernel, target, tuned_as(operation))
            origin = schedule.origin if kernel == spec else "borrowed"
            return of_schedule(path, schedule, origin)
    return None


def of_schedule(path: Path | None, schedule: Schedule, origin: str) -> dict[str, Any]:
    """Return the contents of a schedule."""
    return {
        "operation": schedule.operation,
        "origin": origin,
        "of": schedule.spec,
        "target": schedule.target,
        "space": msgspec.to_builtins(schedule.space),
        "decisions": schedule.decisions,
        "created": schedule.created,
        **_evidence(path, schedule),
    }


def _find(spec: KernelSpec, target: Target, operation: str) -> tuple[Path | None, Schedule | None]:
    path = workspace.find_schedule(spec, target, operation)
    if path is None:
        return None, None
    try:
        return path, read_schedule(path)
    except ScheduleError as error:
        output.stderr().print(f"problem: {error}")
        return path, None


def _evidence(path: Path | None, schedule: Schedule) -> dict[str, Any]:
    measured = schedule.measured
    return {
        "path": path,
        "measured": measured and {**msgspec.to_builtins(measured), "speedup": measured.speedup},
        "predicted": msgspec.to_builtins(schedule.predicted),
        "environment": msgspec.to_builtins(schedule.environment),
    }


def show(facts: dict[str, Any]) -> None:
    """Print what `of_library`, `on_file` or `of_schedule` returned on stdout."""
    console = output.stdout()
    console.print(f"schedule of {facts['operation']} for {facts['target']}", style="bold")
    if not facts["of"]:
        # Libraries of an older natc tell less.
        console.print(f"  {facts['origin'] or 'unknown'}: no search tuned this kernel")
        return
    whose = "" if facts["origin"] in ("tuned", "predicted") else f", {facts['origin']}"
    space = facts["space"] or {}
    console.print(
        f"  of {facts['of']}{whose}, {'predicted' if facts['predicted'] else 'tuned'} "
        f"{str(facts['created'])[:16]}, "
        f"in space {space.get('name')} {space.get('version')}"
    )
    chosen = ", ".join(f"{name} {value}" for name, value in (facts["decisions"] or {}).items())
    console.print(f"  decisions: {chosen}")
    measured, predicted = facts["measured"], facts["predicted"]
    if predicted is not None:
        console.print(
            f"  not measured: {predicted['model']} expects it to be {predicted['speedup']:.2f} "
            "times as fast as the default"
        )
        return
    if measured is None:
        console.print("  measured: unknown, because the file of this schedule is not here")
        return
    where = facts["environment"]
    place = where["gpu"] or f"{where['cpu']}, {where['cores']} cores"
    console.print(f"  measured: on {place}; {measured['trials']} candidates")
    gain = measured.get("gain")
    if gain is not None:
        console.print(
            f"  {gain['speedup']:.2f} times as fast as the default, {gain['low']:.2f} to "
            f"{gain['high']:.2f} ({gain['pairs']} turns)"
        )
    console.print(f"  file: {facts['path']}")
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
    output.print_table(table)
