"""The contents of a library or schedule file, for `natc show FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from natc import runtime
from natc.cli import output
from natc.cli.views import predicted_times, show_schedule, why
from natc.errors import ArgumentError, LibraryError
from natc.operations import contents
from natc.runtime import Library
from natc.store.files import reason
from natc.store.manifest import SUFFIX, load_manifest
from natc.store.schedules import read_schedule

_LIBRARY, _SCHEDULE = "library", "schedule"


def is_file(text: str) -> bool:
    """Return whether a word of the command line means a file, which may be missing."""
    path = Path(text)
    return path.exists() or len(path.parts) > 1 or path.suffix in (SUFFIX, ".so")


def document(text: str) -> dict[str, Any]:
    """Return the contents of a library, its manifest or a schedule, as values for JSON.

    Raises ArgumentError for any other path, and LibraryError or ScheduleError, naming the file,
    if it is damaged.
    """
    path = Path(text)
    if not path.exists():
        raise ArgumentError(f"file {path} does not exist.")
    if path.is_dir():
        raise ArgumentError(
            f"{path} is a directory; natc show takes one file. natc verify {path} checks all "
            "libraries in it, natc list lists the libraries that natc finds."
        )
    if path.suffix == SUFFIX and _is_schedule(path):
        schedule = read_schedule(path.absolute())
        facts = show_schedule.of_schedule(path, schedule, schedule.origin)
        return {"kind": _SCHEDULE, "spec": schedule.spec, "schedule": facts}
    if path.suffix not in (SUFFIX, ".so"):
        raise ArgumentError(
            f"{path} is no library (.so), manifest or schedule (.json). natc verify checks "
            "wheels and archives."
        )
    # A library is SPEC.TARGET.HASH.so, its manifest SPEC.TARGET.json.
    name = path.name if path.suffix == SUFFIX else path.stem
    manifest_path = path.with_name(name).with_suffix(SUFFIX).absolute()
    if not manifest_path.exists():
        raise LibraryError(
            f"library {path} has no manifest {manifest_path.name} beside it; natc loads no "
            "library without a manifest."
        )
    library = Library(load_manifest(manifest_path), manifest_path)
    if path.suffix != SUFFIX and path.name != library.path.name:
        raise LibraryError(
            f"library {path} is not in use: the manifest {manifest_path.name} beside it names "
            f"{library.path.name}."
        )
    return _library(library)


def _is_schedule(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ArgumentError(f"file {path} cannot be read: {reason(error)}.") from error
    except ValueError as error:
        raise ArgumentError(f"file {path} is not JSON: {error}.") from error
    if isinstance(content, dict) and "decisions" in content:
        return True
    if isinstance(content, dict) and "library" in content:
        return False
    raise ArgumentError(f"file {path} is neither a manifest of a library nor a schedule.")


def _library(library: Library) -> dict[str, Any]:
    machine = runtime.this_machine()
    problem = None
    try:
        runtime.verify(library)
    except LibraryError as error:
        problem = str(error)
    return {
        "kind": _LIBRARY,
        "spec": library.spec.name,
        "library": library.path,
        "problem": problem,
        "holds": held(library),
        "runs_here": _runs_here(library, machine),
        "used": why.uses(library, machine) if _is_found(library) else None,
        "schedules": [
            schedule
            for target in library.targets
            for schedule in show_schedule.all_of_library(library, target)
        ],
        # A file that the manifest does not vouch for may be anything.
        "predicted_times": [] if problem else predicted_times.of_library(library),
        "manifest": msgspec.to_builtins(library.manifest),
    }


def _is_found(library: Library) -> bool:
    return any(each.manifest_path == library.manifest_path for each in runtime.kernels())


def _runs_here(library: Library, machine: dict[str, runtime.Facts]) -> str | None:
    """Return why no code of a library runs on this machine, or None if some does."""
    facts = machine[library.manifest.target.kind]
    operation = next(iter(library.manifest.entries))
    choice, rejections = runtime.select([library], library.spec, facts, operation=operation)
    return None if choice else rejections[0].reason


def held(library: Library) -> dict[str, Any]:
    """Return a library's operations, architectures, PTX, and the versions that built it."""
    manifest = library.manifest
    size = library.path.stat().st_size if library.path.is_file() else None
    return {
        "path": library.path,
        "bytes": size,
        "operations": list(manifest.entries),
        "families": contents(library.spec, manifest.entries),
        "targets": [target.name for target in library.targets],
        "ptx": manifest.ptx or None,
        "sha256": manifest.sha256,
        "built_at": manifest.built_at or None,
        "versions": manifest.versions,
    }


def show_held(facts: dict[str, Any]) -> None:
    """Print what `held` returned on stdout."""
    console = output.stdout()
    size = f" ({facts['bytes']:,} bytes)" if facts["bytes"] is not None else ", which is missing"
    console.print("library", style="bold")
    console.print(f"  file: {facts['path']}{size}")
    ptx = f", and PTX of {facts['ptx']} for newer GPUs" if facts["ptx"] else ""
    console.print(f"  code for: {', '.join(facts['targets'])}{ptx}")
    console.print(f"  operations: {', '.join(facts['families'])}")
    tools = ", ".join(
        f"{name} {version}" for name, version in facts["versions"].items() if version
    )
    console.print(f"  built: {facts['built_at'] or 'at an unknown time'}, by {tools or 'unknown'}")
    console.print(f"  sha256: {facts['sha256']}")


def show(facts: dict[str, Any]) -> None:
    """Print what `document` returned on stdout."""
    console = output.stdout()
    if facts["kind"] == _SCHEDULE:
        console.print(f"schedule of {facts['spec']}", style="bold")
        show_schedule.show(facts["schedule"])
        return
    console.print(f"library of {facts['spec']}", style="bold")
    show_held(facts["holds"])
    console.print("here", style="bold")
    no = facts["runs_here"]
    console.print(f"  runs on this machine: {'yes' if no is None else f'no: {no}'}")
    if facts["used"] is None:
        console.print("  natc does not look here; name its directory in NATC_LIB_PATH")
    else:
        for line in why.use_lines(facts["used"]):
            console.print(f"  {line}")
    for schedule in facts["schedules"]:
        show_schedule.show(schedule)
    for predicted in facts["predicted_times"]:
        predicted_times.show(predicted)
    if facts["problem"]:
        console.print(f"problem: {facts['problem']}", style="red")
