"""Reading the files of directories, wheels and archives through one interface."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from natc.errors import ArgumentError
from natc.store.files import reason

DIRECTORY, WHEEL, ARCHIVE, HUB = "directory", "wheel", "archive", "hub"
_ZIPS = (".whl", ".zip")
_TARS = (".tar.gz", ".tgz", ".tar", ".tar.xz")
# The exceptions of the standard library for damaged archives, besides OSError.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError),
    *(RuntimeError, NotImplementedError),
)


class Container(ABC):
    """Files by name, with `/` between folders.

    kind: `directory`, `wheel`, `archive`, or `hub` for a repository with variants.
    problems: the container's own problems, as clauses.
    """

    kind: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files, sorted."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's content; raises OSError when it cannot be read."""

    def folders(self) -> dict[str, list[str]]:
        """Return the names of the files in each folder, sorted."""
        folders: dict[str, list[str]] = {}
        for name in self.names():
            folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
        return folders


class Directory(Container):
    """A library directory, or a repository of the hub."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kind = HUB if (path / "build").is_dir() else DIRECTORY

    def names(self) -> list[str]:
        """Return the files of the directory, or of all variants of a repository."""
        pattern = "build/*/**/*" if self.kind == HUB else "*"
        return sorted(
            file.relative_to(self.path).as_posix()
            for file in self.path.glob(pattern)
            if file.is_file() and not file.name.startswith(".") and file.suffix != ".pyc"
        )

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return (self.path / name).read_bytes()


class Zip(Container):
    """A zip archive, which may be a wheel."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kind = WHEEL if path.suffix == ".whl" else ARCHIVE
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, *_DAMAGE) as error:
            raise _unreadable(path, error) from error
        self._members = {i.filename: i for i in self._zip.infolist() if not i.is_dir()}
        self.problems += [
            f"holds {name!r} more than once"
            for name in sorted(_twice([i.filename for i in self._zip.infolist()]))
        ]
        self.problems += _outside(self._members)

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(self._members)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        try:
            return self._zip.read(self._members[name])
        except _DAMAGE as error:
            raise OSError(None, f"is damaged in the archive ({error})") from error


class Tar(Container):
    """A tar archive, compressed or not."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kind = ARCHIVE
        try:
            # It stays open while its files are read.
            self._tar = tarfile.open(path)  # noqa: SIM115
            members = self._tar.getmembers()
        except (OSError, *_DAMAGE) as error:
            raise _unreadable(path, error) from error
        self._members = {m.name: m for m in members if m.isfile()}
        self.problems += [
            f"holds {m.name!r}, which is neither a file nor a folder"
            for m in members
            if not m.isfile() and not m.isdir()
        ]
        self.problems += _outside(self._members)

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(self._members)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        try:
            file = self._tar.extractfile(self._members[name])
            if file is None:
                raise OSError(None, "is not a file in the archive")
            return file.read()
        except _DAMAGE as error:
            raise OSError(None, f"is damaged in the archive ({error})") from error


def open_container(path: Path) -> Container:
    """Open a directory or package; raises ArgumentError if there is none at the path."""
    if path.is_dir():
        return Directory(path)
    if not path.exists():
        raise ArgumentError(f"{path} does not exist; give a directory, a wheel or an archive.")
    if zipfile.is_zipfile(path) or path.name.endswith(_ZIPS):
        return Zip(path)
    if path.name.endswith(_TARS):
        return Tar(path)
    raise ArgumentError(f"{path} is not a directory, a wheel (.whl), a .zip or a .tar.gz.")


def is_package(path: Path) -> bool:
    """Return whether a path looks like a wheel, an archive or a repository of the hub."""
    return path.name.endswith((*_ZIPS, *_TARS)) or (path / "build").is_dir()


def _unreadable(path: Path, error: Exception) -> ArgumentError:
    message = reason(error) if isinstance(error, OSError) else str(error)
    return ArgumentError(f"{path} cannot be read: {message or 'it is cut short'}.")


def _outside(names: Iterable[str]) -> list[str]:
    return [
        f"holds {name!r}, which would be written outside the folder it is unpacked into"
        for name in names
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
    ]


def _twice(names: list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
