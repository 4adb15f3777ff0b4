"""`natc doctor --why`: whether calls use each library on this machine, and why not."""

from __future__ import annotations

from typing import Any

from natc import env, runtime
from natc.cli import output
from natc.cli.views import why
from natc.operations import contents
from natc.store import workspace


def show_libraries(*, json: bool) -> None:
    """Print on stdout whether calls use each library on this machine."""
    machine = runtime.this_machine()
    document = {
        "devices": [
            {
                "kind": kind,
                "machine": facts.machine.name if facts.machine else None,
                "problem": facts.problem or None,
                "not_built": runtime.jit_unavailable(facts.machine) if facts.machine else None,
            }
            for kind, facts in machine.items()
        ],
        "places": _places(machine),
        "jit": runtime.jit_mode(),
    }
    if json:
        output.print_json(document)
    else:
        _print(document)


def _places(machine: dict[str, runtime.Facts]) -> list[dict[str, Any]]:
    rows = []
    for place in workspace.library_places():
        libraries: list[dict[str, Any]] = [
            {
                "library": library.path,
                "spec": library.spec.name,
                "operations": contents(library.spec, library.manifest.entries),
                "used": why.uses(library, machine),
                "reason": None,
            }
            for library in runtime.kernels()
            if library.manifest_path.parent == place.path
        ]
        libraries += [
            {
                "library": item.path,
                "spec": None,
                "operations": [],
                "used": [],
                "reason": item.reason,
            }
            for item in runtime.problems()
            if place.path in (item.path, item.path.parent)
        ]
        rows.append(
            {
                "source": place.source,
                "path": place.path,
                "exists": place.path.is_dir(),
                "libraries": libraries,
            }
        )
    return rows


def _print(document: dict[str, Any]) -> None:
    console = output.stdout()
    for device in document["devices"]:
        what = device["machine"] or f"none: {device['problem'].rstrip('.')}"
        console.print(f"{device['kind']}: {what}")
        if document["jit"] == "on" and device["not_built"]:
            console.print(f"  calls build no missing kernels: {device['not_built']}")
    console.print(f"{env.NATC_JIT.name}: {document['jit']}")
    for place in document["places"]:
        state = "" if place["exists"] else " (missing)"
        console.print(f"{place['source']}: {place['path']}{state}", style="bold")
        for row in place["libraries"]:
            held = f" ({', '.join(row['operations'])})" if row["operations"] else ""
            where = "" if row["library"] == place["path"] else row["library"].name
            lines = [f"not used: {row['reason']}"] if row["reason"] else why.use_lines(row["used"])
            console.print(f"  {where or 'the directory'}{held}")
            for line in lines:
                console.print(f"    {line}")
        if place["exists"] and not place["libraries"]:
            console.print("  no libraries")
    console.print("natc show --kernel K asks about one kernel")
