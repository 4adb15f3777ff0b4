"""What is in one library or schedule file, for `natc show FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from natc import runtime
from natc.cli import output
from natc.cli.views import show_schedule, why
from natc.errors import ArgumentError, LibraryError
from natc.operations import contents
from natc.runtime import Library
from natc.store.files import reason
from natc.store.manifest import SUFFIX, load_manifest
from natc.store.schedules import read_schedule

_LIBRARY, _SCHEDULE = "library", "schedule"


def is_file(text: str) -> bool:
    """Return whether a word of the command line is meant as a file, there or not."""
    path = Path(text)
    return path.exists() or len(path.parts) > 1 or path.suffix in (SUFFIX, ".so")


def document(text: str) -> dict[str, Any]:
    """Return what is in a library, its manifest or a schedule, as values for JSON.

    Raises ArgumentError for what is none of these, and LibraryError or ScheduleError, naming the
    file, for one that is damaged.
    """
    path = Path(text)
    if not path.exists():
        raise ArgumentError(f"file {path} does not exist.")
    if path.is_dir():
        raise ArgumentError(
            f"{path} is a directory; natc show takes one file. natc verify {path} checks all "
            "libraries in it, natc list lists those that natc finds."
        )
    if path.suffix == SUFFIX and _is_schedule(path):
        schedule = read_schedule(path.absolute())
        found = show_schedule.of_schedule(path, schedule, "tuned")
        return {"kind": _SCHEDULE, "spec": schedule.spec, "schedule": found}
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
            f"library {path} has no manifest {manifest_path.name} beside it, which says what it "
            "holds; natc does not load it."
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
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ArgumentError(f"file {path} cannot be read: {reason(error)}.") from error
    except ValueError as error:
        raise ArgumentError(f"file {path} is not JSON: {error}.") from error
    if isinstance(found, dict) and "decisions" in found:
        return True
    if isinstance(found, dict) and "library" in found:
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
        "manifest": msgspec.to_builtins(library.manifest),
    }


def _is_found(library: Library) -> bool:
    return any(found.manifest_path == library.manifest_path for found in runtime.kernels())


def _runs_here(library: Library, machine: dict[str, runtime.Facts]) -> str | None:
    """Return why no code of a library runs on this machine, or None where some does."""
    facts = machine[library.manifest.target.kind]
    operation = next(iter(library.manifest.entries))
    choice, rejections = runtime.select([library], library.spec, facts, operation=operation)
    return None if choice else rejections[0].reason


def held(library: Library) -> dict[str, Any]:
    """Return what a library holds: operations, architectures, PTX, and how it was made."""
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


def show_held(found: dict[str, Any]) -> None:
    """Print what `held` returned on stdout."""
    console = output.stdout()
    size = f" ({found['bytes']:,} bytes)" if found["bytes"] is not None else ", which is missing"
    console.print("library", style="bold")
    console.print(f"  file: {found['path']}{size}")
    ptx = f", and PTX of {found['ptx']} for newer GPUs" if found["ptx"] else ""
    console.print(f"  code for: {', '.join(found['targets'])}{ptx}")
    console.print(f"  operations: {', '.join(found['families'])}")
    made = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    console.print(f"  built: {found['built_at'] or 'at an unknown time'}, by {made or 'unknown'}")
    console.print(f"  sha256: {found['sha256']}")


def show(found: dict[str, Any]) -> None:
    """Print what `document` returned on stdout."""
    console = output.stdout()
    if found["kind"] == _SCHEDULE:
        console.print(f"schedule of {found['spec']}", style="bold")
        show_schedule.show(found["schedule"])
        return
    console.print(f"library of {found['spec']}", style="bold")
    show_held(found["holds"])
    console.print("here", style="bold")
    no = found["runs_here"]
    console.print(f"  runs on this machine: {'yes' if no is None else f'no: {no}'}")
    if found["used"] is None:
        console.print("  not where natc looks; name its directory in NATC_LIB_PATH")
    else:
        for line in why.use_lines(found["used"]):
            console.print(f"  {line}")
    for schedule in found["schedules"]:
        show_schedule.show(schedule)
    if found["problem"]:
        console.print(f"problem: {found['problem']}", style="red")
