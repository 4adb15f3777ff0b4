"""Finding and removing files in natc's cache that no call uses: bad libraries, parts of files.

Files outside natc's cache, files of a newer natc, and directories that others can write stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from natc.errors import LibraryError, NatcError
from natc.operations import CALLED_TOGETHER
from natc.runtime import registry
from natc.runtime.load import verify
from natc.runtime.scan import Library, scan
from natc.runtime.trust import distrust
from natc.store import workspace
from natc.store.files import locked, reason
from natc.store.libraries import libraries_of
from natc.store.manifest import SCHEMA_VERSION, SUFFIX, schema_version


@dataclass(frozen=True, slots=True)
class Leftover:
    """Files that no call uses; path: the file to name; reason: a clause without a full stop."""

    path: Path
    reason: str
    files: tuple[Path, ...]


def leftovers() -> list[Leftover]:
    """Return the files that `prune` would remove; reads every library of the cache."""
    return [leftover for directory in _directories() for leftover in _in(directory)]


def prune() -> list[Leftover]:
    """Remove the files in natc's cache that no call uses, and return them.

    Waits for processes that write a library there. Raises NatcError naming a file that cannot be
    removed.
    """
    removed = []
    for directory in _directories():
        if next(_in(directory), None) is None:
            continue
        with locked(directory):
            for leftover in list(_in(directory)):
                for file in leftover.files:
                    _remove(file)
                removed.append(leftover)
    registry.clear()
    return removed


def _directories() -> list[Path]:
    own = (workspace.library_dir(), *map(workspace.jit_dir, CALLED_TOGETHER))
    return [path for path in own if path.is_dir() and not distrust(path)]


def _in(directory: Path) -> Iterator[Leftover]:
    search = scan([directory])
    problems = {item.path: item.reason for item in search.unreadable if not _is_newer(item.path)}
    named: set[Path] = set()
    for library in search.libraries:
        problem = _problem(library)
        if problem:
            problems[library.manifest_path] = problem
        else:
            named.add(library.path)
    for path in directory.glob(f"*{SUFFIX}"):
        if _is_newer(path):
            named.update(libraries_of(path))
    for path, problem in sorted(problems.items()):
        files = (path, *libraries_of(path))
        named.update(files)
        # The problem without the advice that follows it.
        yield Leftover(path, problem.partition(". ")[0], files)
    # A process that was killed writes a library and no manifest, or a part of a file.
    for path in sorted(set(directory.glob("*.so")) - named):
        yield Leftover(path, "no manifest names it", (path,))
    for path in sorted(directory.glob(".*.tmp")):
        yield Leftover(path, "is a part of a file", (path,))


def _is_newer(path: Path) -> bool:
    """Return whether a newer natc may have written a manifest."""
    try:
        return (schema_version(path) or 0) > SCHEMA_VERSION
    except OSError:
        return True


def _problem(library: Library) -> str | None:
    """Return why a library cannot be used, as a clause, or None."""
    try:
        verify(library)
    except LibraryError:
        there = library.path.is_file()
        return "its library " + ("is not the file it vouches for" if there else "is missing")
    return None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise NatcError(f"file {path} cannot be removed: {reason(error)}.") from error
