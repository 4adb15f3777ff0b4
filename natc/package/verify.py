"""Checking libraries before anybody runs them: hashes, manifests, symbols, signatures."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from natc.errors import LibraryError
from natc.package.containers import (
    ARCHIVE,
    DIRECTORY,
    HUB,
    WHEEL,
    Container,
    Damaged,
    is_package,
    open_container,
)
from natc.package.portable import glibc_problem, manifest_problems, needs_problems
from natc.runtime.trust import distrust
from natc.store import elf, workspace
from natc.store.files import reason
from natc.store.manifest import SUFFIX, Manifest, parse_manifest
from natc.store.signing import SIGNATURE, SUMS, Verifier, digest, parse_sums

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
    try:
        container = open_container(path)
    except Damaged as error:
        return Report(path, error.kind, problems=[_printable(str(error))])
    for _ in range(_ATTEMPTS):
        files = _Files(container)
        report = _check(files, key, portable, may_be_empty)
        if container.names() == files.names:
            break
    report.problems = [_printable(problem) for problem in report.problems]
    for row in report.rows:
        row.library = _printable(row.library)
        row.problems = [_printable(problem) for problem in row.problems]
    return report


class _Files:
    """The files of a container while it is checked once.

    wrong: the names of files that have a problem, or are missing: each is reported once.
    """

    def __init__(self, container: Container) -> None:
        self.container, self.names = container, container.names()
        self.wrong: set[str] = set()
        self._hashes: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        """Return a file's content; raises OSError, and counts the file as wrong, if it cannot."""
        try:
            data = self.container.read(name)
        except OSError:
            self.wrong.add(name)
            raise
        self._hashes[name] = hashlib.sha256(data).digest()
        return data

    def problems(
        self,
        listed: Mapping[str, object],
        where: str,
        text: Callable[[bytes], str] = bytes.hex,
        names: Iterable[str] = (),
    ) -> list[str]:
        """Return the files that are missing or have another hash than the one listed.

        listed: name -> hash as `text` returns it. where: the list's name. names: files that must
        be on the list. A file that was wrong before is left out.
        """
        problems = []
        there = set(self.names)
        for name in sorted({*listed, *names} - self.wrong):
            try:
                if name not in there:
                    problem = f"is missing, though {where} names it"
                elif name not in listed:
                    problem = f"is not named by {where}"
                elif text(self._hashes.get(name) or self._hash(name)) != listed[name]:
                    problem = f"is not the file that {where} names"
                else:
                    continue
            except OSError as error:
                problem = reason(error)
            self.wrong.add(name)
            problems.append(f"{name} {problem}")
        return problems

    def unreadable(self) -> list[str]:
        """Return the files that no other check has read, and that cannot be read."""
        problems = []
        for name in self.names:
            try:
                if name not in self.wrong and name not in self._hashes:
                    self.read(name)
            except OSError as error:
                problems.append(f"{name} {reason(error)}")
        return problems

    def _hash(self, name: str) -> bytes:
        self.read(name)
        return self._hashes[name]


def _check(files: _Files, key: Verifier | None, portable: bool, may_be_empty: bool) -> Report:
    container = files.container
    path = container.path
    report = Report(path, container.kind, problems=list(container.problems))
    if container.kind == DIRECTORY:
        danger = distrust(path)
        if danger:
            report.problems.append(danger)
    folders = {
        folder: names
        for folder, names in container.folders().items()
        if any(_is_manifest(name) or name.endswith(_LIBRARIES) for name in names)
        and (container.kind != HUB or PurePosixPath(folder).name == workspace.WHEEL_FOLDER)
    }
    rows = {}
    for folder, names in folders.items():
        shipped = container.kind != DIRECTORY or any(name.endswith(SUMS) for name in names)
        rows[folder] = _libraries(files, names, portable=portable or shipped)
        report.rows += rows[folder]
    if not report.rows and not (may_be_empty and container.kind == DIRECTORY):
        report.problems.append(_no_library(path))
    if container.kind == WHEEL:
        report.problems += _wheel_problems(files)
    if container.kind == HUB:
        report.problems += _hub_problems(files)
    for folder, names in folders.items():
        _check_lists(files, names, rows[folder], report, key)
    if container.kind == ARCHIVE:
        report.problems += files.unreadable()
    return report


def _printable(text: str) -> str:
    """Return text from a package, with escapes for characters that are not printable."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _no_library(path: Path) -> str:
    inside = path.iterdir() if path.is_dir() else ()
    packages = sorted(file for file in inside if is_package(file))
    advice = f", but packages: give {', '.join(map(str, packages))}" if packages else ""
    return f"holds no library{advice}"


def _is_manifest(name: str) -> bool:
    return name.endswith(SUFFIX) and PurePosixPath(name).name != _HUB_METADATA


def _libraries(files: _Files, names: Sequence[str], *, portable: bool) -> list[LibraryFindings]:
    rows, vouched, unreadable = [], set(), set()
    there = set(names)
    for name in filter(_is_manifest, names):
        row = LibraryFindings(name)
        rows.append(row)
        try:
            manifest = parse_manifest(files.read(name), name)
        except (OSError, LibraryError) as error:
            files.wrong.add(name)
            row.problems.append(_why(error).rstrip("."))
            unreadable.add(name)
            continue
        library = str(PurePosixPath(name).with_name(manifest.library))
        vouched.add(library)
        row.library, row.spec = library, manifest.spec
        row.target = f"{manifest.target.kind} {','.join(manifest.target.archs)}"
        if library not in there:
            files.wrong.add(library)
            row.problems.append("is missing, though there is a manifest for it")
            continue
        _check_library(files, manifest, row, portable=portable)
    unnamed = {
        name
        for name in names
        if name.endswith(_LIBRARIES)
        and name not in vouched
        # A library is SPEC.TARGET.HASH.so, and its manifest SPEC.TARGET.json.
        and f"{name.rsplit('.', 2)[0]}{SUFFIX}" not in unreadable
    }
    files.wrong |= unnamed
    return rows + [LibraryFindings(n, problems=["no manifest names it"]) for n in sorted(unnamed)]


def _check_library(
    files: _Files, manifest: Manifest, row: LibraryFindings, *, portable: bool
) -> None:
    try:
        code = files.read(row.library)
    except OSError as error:
        row.problems.append(reason(error))
        return
    if digest(code) != manifest.sha256:
        files.wrong.add(row.library)
        row.problems.append(
            f"is not the file that its manifest vouches for (sha256 {digest(code)}, expected "
            f"{manifest.sha256})"
        )
        return
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


def _check_lists(
    files: _Files,
    names: Sequence[str],
    rows: Sequence[LibraryFindings],
    report: Report,
    key: Verifier | None,
) -> None:
    """Check the lists of hashes in a folder, and their signatures if there is a key."""
    signed: set[str] = set()
    for name in names:
        if not name.endswith(SUMS) or name in files.wrong:
            continue
        try:
            data = files.read(name)
            listed = {
                str(PurePosixPath(name).with_name(n)): h for n, h in parse_sums(data).items()
            }
        except (OSError, ValueError) as error:
            report.problems.append(f"list {name} cannot be read: {_why(error)}")
            continue
        report.problems += files.problems(listed, f"list {name}")
        if key is None:
            continue
        signature = name.removesuffix(SUMS) + SIGNATURE
        if signature not in names:
            report.problems.append(f"list {name} is not signed")
        elif not key.verify(data, _read(files, signature)):
            report.problems.append(f"the signature of list {name} is not of this key's owner")
        else:
            signed |= listed.keys()
    for row in rows:
        row.signed = row.library in signed
        if key is not None and not row.signed:
            row.problems.append("is on no list that this key's owner signed")


def _read(files: _Files, name: str) -> bytes:
    """Return a file's content, or nothing if it cannot be read; nobody has signed that."""
    try:
        return files.read(name)
    except OSError:
        return b""


def _wheel_problems(files: _Files) -> list[str]:
    """Return the problems of a wheel's record of hashes and of its entry point."""
    names = set(files.names)
    records = [name for name in names if name.endswith(".dist-info/RECORD")]
    if len(records) != 1:
        return ["has no RECORD of its files"]
    try:
        lines = csv.reader(io.StringIO(files.read(records[0]).decode()))
        recorded = {line[0]: line[1] for line in lines if line}
    except (OSError, ValueError, IndexError, csv.Error) as error:
        return [f"its RECORD cannot be read: {_why(error)}"]
    recorded.pop(records[0], None)
    problems = files.problems(recorded, "RECORD", _in_record, names - {records[0]})
    points, group = f"{records[0].removesuffix('RECORD')}entry_points.txt", workspace.ENTRY_POINTS
    # A file that cannot be read was reported above.
    with contextlib.suppress(OSError):
        if points not in names or f"[{group}]".encode() not in files.read(points):
            problems.append(f"has no entry point {group}: natc would not find it")
    return problems


def _in_record(sha256: bytes) -> str:
    return f"sha256={base64.urlsafe_b64encode(sha256).decode().rstrip('=')}"


def _in_metadata(sha256: bytes) -> str:
    return base64.b64encode(sha256).decode()


def _hub_problems(files: _Files) -> list[str]:
    """Return the files of a repository whose hashes are not the ones in its metadata."""
    problems = []
    for folder, names in files.container.folders().items():
        if len(PurePosixPath(folder).parts) != 2:
            continue
        metadata = f"{folder}/{_HUB_METADATA}"
        if metadata not in names:
            problems.append(f"{folder} has no {_HUB_METADATA}")
            continue
        try:
            hashes = json.loads(files.read(metadata))["digest"]["files"]
            listed = {f"{folder}/{name}": value for name, value in hashes.items()}
            there = [n for n in files.names if n.startswith(f"{folder}/") and n != metadata]
            problems += files.problems(listed, _HUB_METADATA, _in_metadata, there)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problems.append(f"{metadata} is damaged: {error!r}")
    return problems
