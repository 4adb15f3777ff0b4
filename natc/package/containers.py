"""Reading the files of directories, wheels and archives through one interface.

A package may be damaged, or made to do damage: nothing is inflated before its size is known and
allowed, and names that would be written elsewhere are reported and not read.
"""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from natc.errors import ArgumentError
from natc.store.files import reason

DIRECTORY, WHEEL, ARCHIVE, HUB = "directory", "wheel", "archive", "hub"
_ZIPS = (".whl", ".zip")
_TARS = (".tar.gz", ".tgz", ".tar")
# The exceptions of the standard library for damaged archives, besides OSError.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, ValueError),
    *(RuntimeError, IndexError, OverflowError),
)
_MIB = 1 << 20
# Files of a package may hold this many times the bytes of the package, and these many more.
# Libraries of small kernels are padded with zeros: 48 times is the most that was seen.
_MOST_TIMES, _MOST_MORE = 64, 32 * _MIB
# No file that natc makes is nearly as large.
_LARGEST_FILE = 1024 * _MIB
# The header of a file in a tar archive, which may hold a long name.
_LARGEST_HEADER = _MIB


class Damaged(Exception):
    """A package that cannot be read; kind: as a container has it. The message is a clause."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


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
        with open(self.path / name, "rb") as file:
            _refuse_large(file.seek(0, io.SEEK_END))
            file.seek(0)
            return file.read()


class Zip(Container):
    """A zip archive, which may be a wheel."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kind = WHEEL if path.suffix == ".whl" else ARCHIVE
        self._zip = zipfile.ZipFile(path)
        members = self._zip.infolist()
        _refuse_bomb(path, sum(member.file_size for member in members))
        links = [m.filename for m in members if stat.S_ISLNK(m.external_attr >> 16)]
        files = [m.filename for m in members if not m.is_dir() and m.filename not in links]
        folders = [m.filename.removesuffix("/") for m in members if m.is_dir()]
        good, self.problems = _sorted_out(files, folders, links)
        self._members = {m.filename: m for m in members if m.filename in good}

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(self._members)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        member = self._members[name]
        _refuse_large(member.file_size)
        # The other methods inflate without a bound.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError(None, f"is compressed by method {member.compress_type}, not deflated")
        try:
            with self._zip.open(member) as file:
                data = file.read(member.file_size)
        except (OSError, *_DAMAGE) as error:
            raise OSError(None, f"is damaged in the archive ({_words(error)})") from error
        if len(data) != member.file_size:
            raise OSError(None, "is cut short in the archive")
        return data


class Tar(Container):
    """A tar archive, compressed by gzip or not."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kind = ARCHIVE
        # A copy of all files, which are read in any order: each step back in the archive would
        # inflate it from its beginning.
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115
        self._places: dict[str, tuple[int, int]] = {}
        files: list[str] = []
        folders: list[str] = []
        links: list[str] = []
        is_compressed = path.name.endswith((".gz", ".tgz"))
        with gzip.open(path) if is_compressed else open(path, "rb") as file:
            stream: Any = _TarStream(file)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    _refuse_bomb(path, archive.offset)
                    stream.allowed = archive.offset + _LARGEST_HEADER
                    if member.isfile() and not member.issparse():
                        files.append(member.name)
                        self._places[member.name] = (self._copy.tell(), member.size)
                        shutil.copyfileobj(
                            cast("IO[bytes]", archive.extractfile(member)), self._copy
                        )
                    else:
                        (folders if member.isdir() else links).append(member.name)
            # The module reads a damaged header as the end.
            if stream.last != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it is damaged or cut short at byte {archive.offset}")
            # To the end, where gzip has its check sum.
            while stream.read(tarfile.BLOCKSIZE):
                pass
        good, self.problems = _sorted_out(files, folders, links)
        self._places = {name: self._places[name] for name in good}

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(self._places)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        start, size = self._places[name]
        _refuse_large(size)
        self._copy.seek(start)
        return self._copy.read(size)


class _TarStream:
    """The bytes of a tar file, in their order.

    allowed: the position up to which they may be read. last: the bytes that were read last.
    """

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file, self._position = file, 0
        self.allowed, self.last = _LARGEST_HEADER, b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if self._position + size > self.allowed:
            raise tarfile.ReadError(f"what follows byte {self._position} is too long")
        self.last = self._file.read(size)
        self._position += len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        """Skip the bytes before a position."""
        while self._position < position and self.read(min(position - self._position, _MIB)):
            pass


def open_container(path: Path) -> Container:
    """Open a directory or package.

    Raises ArgumentError if there is none at the path, and Damaged if it cannot be read.
    """
    expected = "give a directory, a wheel (.whl), a .zip or a .tar.gz"
    try:
        if path.is_dir():
            return Directory(path)
        if not path.exists():
            raise ArgumentError(f"{path} does not exist; {expected}.")
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {reason(error)}; {expected}.") from error
    is_tar, is_zip = path.name.endswith(_TARS), path.name.endswith(_ZIPS)
    if not path.is_file() or not (is_tar or is_zip or zipfile.is_zipfile(path)):
        raise ArgumentError(f"{path} is no package; {expected}.")
    try:
        return Tar(path) if is_tar else Zip(path)
    except (OSError, *_DAMAGE) as error:
        kind = WHEEL if path.suffix == ".whl" else ARCHIVE
        raise Damaged(kind, f"cannot be read: {_words(error)}") from error


def is_package(path: Path) -> bool:
    """Return whether a path looks like a wheel, an archive or a repository of the hub."""
    return path.name.endswith((*_ZIPS, *_TARS)) or (path / "build").is_dir()


def _words(error: Exception) -> str:
    message = reason(error) if isinstance(error, OSError) else str(error)
    return message or "it is cut short"


def _refuse_bomb(path: Path, size: int) -> None:
    """Raise ValueError if the files of a package are far larger than the package."""
    packed = path.stat().st_size
    if size > _MOST_MORE + _MOST_TIMES * packed:
        raise ValueError(
            f"it holds files of {size / _MIB:.0f} MiB or more, {size / packed:.0f} times its own "
            "size, as no package of libraries does"
        )


def _refuse_large(size: int) -> None:
    if size > _LARGEST_FILE:
        raise OSError(None, f"has {size} bytes, more than natc reads")


def _sorted_out(
    files: Sequence[str], folders: Sequence[str], links: Sequence[str]
) -> tuple[set[str], list[str]]:
    """Return the names of files that may be read, and a problem, as a clause, for each other name.

    links: names of everything that is neither a file nor a folder.
    """
    problems = [
        f"holds {name!a}, which is neither a file nor a folder" for name in sorted({*links})
    ]
    counts = Counter(files)
    parents = {str(parent) for name in counts for parent in PurePosixPath(name).parents}
    good = set()
    for name in sorted({*files, *folders}):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            why = "which would be written outside the folder it is unpacked into"
        elif str(path) != name or "\\" in name or not name.isprintable():
            why = "which is not a plain name"
        elif counts[name] > 1:
            why = "more than once"
        elif name in counts and (name in parents or name in folders):
            why = "as a file and as a folder"
        else:
            good.add(name)
            continue
        problems.append(f"holds {name!a}, {why}")
    return good & counts.keys(), problems
