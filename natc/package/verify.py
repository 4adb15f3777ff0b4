"""Checking libraries before anybody runs them: hashes, manifests, symbols, signatures."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from natc.errors import LibraryError
from natc.package.containers import DIRECTORY, HUB, WHEEL, Container, is_package, open_container
from natc.package.portable import glibc_problem, manifest_problems, needs_problems
from natc.package.signing import SIGNATURE, SUMS, Verifier, digest, parse_sums
from natc.runtime.trust import distrust
from natc.store import elf, workspace
from natc.store.files import reason
from natc.store.manifest import SUFFIX, Manifest, parse_manifest

_LIBRARIES = (".so", ".dylib", ".dll")
_HUB_METADATA = "metadata.json"
# How often a directory is checked at most if other processes write there meanwhile.
_ATTEMPTS = 3


@dataclass
class LibraryFindings:
    """A library: its name in the container, its spec and target, and its problems."""

    library: str
    spec: str | None = None
    target: str | None = None
    glibc: str | None = None
    signed: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass
class Report:
    """The result for a directory, wheel, archive or repository.

    problems: the container's own; each row has the problems of a library.
    """

    path: Path
    kind: str
    rows: list[LibraryFindings] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems and not any(row.problems for row in self.rows)


def verify_path(
    path: Path,
    *,
    key: Verifier | None = None,
    portable: bool = False,
    may_be_empty: bool = False,
) -> Report:
    """Check a directory, wheel, archive or repository of the hub without running any of it.

    key: every library must be on a list that the key's owner signed. portable: libraries in a
    directory must run on every system of manylinux_2_28, as libraries in packages must.
    may_be_empty: a directory without libraries is no problem. Raises ArgumentError if `path` is
    none of these.
    """
    container = open_container(path)
    for _ in range(_ATTEMPTS):
        names = container.names()
        report = _check(container, key, portable, may_be_empty)
        if container.names() == names:
            break
    return report


def _check(
    container: Container, key: Verifier | None, portable: bool, may_be_empty: bool
) -> Report:
    path = container.path
    report = Report(path, container.kind, problems=list(container.problems))
    if container.kind == DIRECTORY:
        danger = distrust(path)
        if danger:
            report.problems.append(danger)
    for folder, names in container.folders().items():
        if not any(_is_manifest(name) or name.endswith(_LIBRARIES) for name in names):
            continue
        if container.kind == HUB and PurePosixPath(folder).name != workspace.WHEEL_FOLDER:
            continue
        shipped = container.kind != DIRECTORY or any(name.endswith(SUMS) for name in names)
        rows = _libraries(container, names, portable=portable or shipped)
        _check_lists(container, names, rows, report, key)
        report.rows += rows
    if not report.rows and not (may_be_empty and container.kind == DIRECTORY):
        report.problems.append(_no_library(path))
    if container.kind == WHEEL:
        report.problems += _wheel_problems(container)
    if container.kind == HUB:
        report.problems += _hub_problems(container)
    return report


def _no_library(path: Path) -> str:
    files = path.iterdir() if path.is_dir() else ()
    packages = sorted(file for file in files if is_package(file))
    inside = f", but packages: give {', '.join(map(str, packages))}" if packages else ""
    return f"holds no library{inside}"


def _is_manifest(name: str) -> bool:
    return name.endswith(SUFFIX) and PurePosixPath(name).name != _HUB_METADATA


def _libraries(
    container: Container, names: Sequence[str], *, portable: bool
) -> list[LibraryFindings]:
    rows, vouched = [], set()
    for name in filter(_is_manifest, names):
        row = LibraryFindings(name)
        rows.append(row)
        try:
            manifest = parse_manifest(container.read(name), name)
        except (OSError, LibraryError) as error:
            row.problems.append(_why(error).rstrip("."))
            continue
        library = str(PurePosixPath(name).with_name(manifest.library))
        vouched.add(library)
        row.library, row.spec = library, manifest.spec
        row.target = f"{manifest.target.kind} {','.join(manifest.target.archs)}"
        if library not in names:
            row.problems.append("is missing, though there is a manifest for it")
            continue
        _check_library(container, manifest, row, portable=portable)
    rows += [
        LibraryFindings(name, problems=["no manifest names it"])
        for name in names
        if name.endswith(_LIBRARIES) and name not in vouched
    ]
    return rows


def _check_library(
    container: Container, manifest: Manifest, row: LibraryFindings, *, portable: bool
) -> None:
    try:
        code = container.read(row.library)
    except OSError as error:
        row.problems.append(reason(error))
        return
    actual = digest(code)
    if actual != manifest.sha256:
        row.problems.append(
            f"is not the file that its manifest vouches for (sha256 {actual}, expected "
            f"{manifest.sha256})"
        )
    try:
        library = elf.read(code)
    except elf.ElfError as error:
        row.problems.append(f"cannot be loaded: {error}")
        return
    row.glibc = library.glibc_text or None
    row.problems += needs_problems(library) + manifest_problems(library, manifest)
    old = glibc_problem(library)
    if old and portable:
        row.problems.append(old)


def _why(error: Exception) -> str:
    return reason(error) if isinstance(error, OSError) else str(error)


def _read(container: Container, name: str) -> bytes:
    """Return a file's content, or nothing if it cannot be read; then no hash fits."""
    try:
        return container.read(name)
    except OSError:
        return b""


def _sha256(container: Container, name: str) -> bytes:
    return hashlib.sha256(_read(container, name)).digest()


def _check_lists(
    container: Container,
    names: Sequence[str],
    rows: Sequence[LibraryFindings],
    report: Report,
    key: Verifier | None,
) -> None:
    """Check the lists of hashes in a folder, and their signatures if there is a key."""
    by_name = {PurePosixPath(name).name: name for name in names}
    signed: set[str] = set()
    for name in names:
        if not name.endswith(SUMS):
            continue
        try:
            data = container.read(name)
            listed = parse_sums(data)
        except (OSError, ValueError) as error:
            report.problems.append(f"list {name} cannot be read: {_why(error)}")
            continue
        for file, expected in listed.items():
            if file not in by_name:
                report.problems.append(f"list {name} names {file}, which is missing")
            elif _sha256(container, by_name[file]).hex() != expected:
                report.problems.append(f"{by_name[file]} is not the file that list {name} names")
        if key is None:
            continue
        signature = name.removesuffix(SUMS) + SIGNATURE
        if signature not in names:
            report.problems.append(f"list {name} is not signed")
        elif not key.verify(data, _read(container, signature)):
            report.problems.append(f"the signature of list {name} is not of this key's owner")
        else:
            signed |= {by_name[file] for file in listed if file in by_name}
    for row in rows:
        row.signed = row.library in signed
        if key is not None and not row.signed:
            row.problems.append("is on no list that this key's owner signed")


def _wheel_problems(container: Container) -> list[str]:
    """Return the problems of a wheel's record of hashes and of its entry point."""
    names = container.names()
    records = [name for name in names if name.endswith(".dist-info/RECORD")]
    if len(records) != 1:
        return ["has no RECORD of its files"]
    folder = records[0].removesuffix("RECORD")
    problems = []
    recorded: dict[str, str] = {}
    try:
        text = container.read(records[0]).decode()
        recorded = {line[0]: line[1] for line in csv.reader(io.StringIO(text)) if line}
        points = container.read(f"{folder}entry_points.txt").decode()
    except KeyError:
        points = ""
    except (OSError, ValueError, IndexError) as error:
        return [f"its RECORD cannot be read: {_why(error)}"]
    if f"[{workspace.ENTRY_POINTS}]" not in points:
        problems.append(f"has no entry point {workspace.ENTRY_POINTS}: natc would not find it")
    for name in names:
        if name == records[0]:
            continue
        actual = base64.urlsafe_b64encode(_sha256(container, name))
        if recorded.get(name) != f"sha256={actual.rstrip(b'=').decode()}":
            problems.append(f"{name} is not the file that RECORD names")
    problems += [f"{name} is in RECORD and missing" for name in recorded if name not in names]
    return problems


def _hub_problems(container: Container) -> list[str]:
    """Return the files of a repository whose hashes are not the ones in its metadata."""
    problems = []
    for folder, names in container.folders().items():
        if len(PurePosixPath(folder).parts) != 2:
            continue
        metadata = f"{folder}/{_HUB_METADATA}"
        if metadata not in names:
            problems.append(f"{folder} has no {_HUB_METADATA}")
            continue
        try:
            files = json.loads(container.read(metadata))["digest"]["files"]
            there = [n for n in container.names() if n.startswith(f"{folder}/") and n != metadata]
            for name in sorted({*there, *(f"{folder}/{name}" for name in files)}):
                if name not in there:
                    problems.append(f"{name} is missing")
                    continue
                actual = base64.b64encode(_sha256(container, name)).decode()
                if files.get(name.removeprefix(f"{folder}/")) != actual:
                    problems.append(f"{name} is not the file that {_HUB_METADATA} names")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{metadata} is damaged: {error!r}")
    return problems
