"""Verifying and opening libraries; the only place that loads machine code."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from natc.errors import LibraryError
from natc.host import detect
from natc.runtime.commands import rebuild_command
from natc.runtime.scan import Library
from natc.runtime.select import Choice
from natc.runtime.signatures import unsigned
from natc.runtime.trust import distrust
from natc.store import elf, workspace
from natc.store.files import reason
from natc.store.manifest import file_sha256, load_manifest, sha256_of

# Each open file of this process has a name in the first directory, on Linux. The second one lies
# in memory: some file systems take milliseconds to create and remove a directory.
_DESCRIPTORS, _MEMORY = Path("/proc/self/fd"), "/dev/shm"
_PREFIX = "natc-load-"
# No library takes so many seconds to open.
_LONG_AGO = 3600.0


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded function: call it as `function(query, key, value, [rpb,] output, [lse,] ...)`.

    alignment: bytes that every data pointer must be a multiple of, else the process may crash.
    """

    function: Any
    alignment: int
    choice: Choice


def verify(library: Library) -> Library:
    """Check that a library's file has the hash in its manifest, and return the library.

    If another process has replaced the library since it was searched for, return the new one.
    Raises LibraryError naming the file, both hashes and the command that builds it again.
    """
    with _verified(library) as (library, _):
        return library


@contextlib.contextmanager
def _verified(library: Library) -> Iterator[tuple[Library, BinaryIO]]:
    """Yield what `verify` returns, and the open file that has the hash."""
    library, file = _file_of(library)
    with file:
        try:
            actual = sha256_of(file)
        except OSError as error:
            raise _unreadable(library, error) from error
        expected = library.manifest.sha256
        if actual != expected:
            raise LibraryError(
                f"library {library.path} is not the file that its manifest vouches for: expected "
                f"sha256 {expected}, found {actual}. Nothing of it was run. {_remedy(library)}"
            )
        yield library, file


def _file_of(library: Library) -> tuple[Library, BinaryIO]:
    """Open a library's file, or the file of a library that has replaced it."""
    try:
        return library, open(library.path, "rb")
    except FileNotFoundError as error:
        replacement = Library(load_manifest(library.manifest_path), library.manifest_path)
        if replacement.path != library.path:
            return _file_of(replacement)
        raise _unreadable(library, error) from error
    except OSError as error:
        raise _unreadable(library, error) from error


def _unreadable(library: Library, error: OSError) -> LibraryError:
    return LibraryError(
        f"library {library.path} cannot be read: {reason(error)}. {_remedy(library)}"
    )


def load(choice: Choice) -> Kernel:
    """Verify a library, open it, and return the chosen function.

    Not thread-safe: the caller holds a lock. Raises LibraryError naming the file when its hash is
    not the manifest's, others may have written it, it is for another processor, it cannot be
    opened, or it has no such function.
    """
    with _checked(choice.library) as (library, file):
        module = _modules.get(library.path) or _open(library, file)
    try:
        function = module[choice.function]
    except AttributeError as error:
        raise LibraryError(
            f"library {library.path} has no function {choice.function!r}, which its manifest "
            f"names. {_remedy(library)}"
        ) from error
    return Kernel(function, library.manifest.alignment, replace(choice, library=library))


def check(library: Library) -> Library:
    """Check a library's hash, owner and processor without opening it; return it as `verify` does.

    Raises LibraryError if the hash is not the manifest's, if other users may have written the
    file, if nobody in NATC_TRUSTED_KEYS signed it, or if it is for another processor.
    """
    with _checked(library) as (library, _):
        return library


@contextlib.contextmanager
def _checked(library: Library) -> Iterator[tuple[Library, BinaryIO]]:
    """Yield what `check` returns, and the open file that was checked."""
    with _verified(library) as (library, file):
        danger = distrust(library.path) or distrust(library.manifest_path) or unsigned(library)
        if danger:
            raise LibraryError(f"library {library.path} is not loaded: {danger}.")
        _check_machine(library, file)
        yield library, file


def _check_machine(library: Library, file: BinaryIO) -> None:
    # On other systems, libraries have another format; their loader checks it.
    if sys.platform != "linux":
        return
    path, here = library.path, detect.host_machine()
    file.seek(0)
    try:
        machine = elf.machine_of(file.read(64), os.fstat(file.fileno()).st_size)
    except elf.ElfError as error:
        raise LibraryError(
            f"library {path} cannot be opened: {error}. {_remedy(library)}"
        ) from error
    if machine != here:
        raise LibraryError(
            f"library {path} is for {machine}, and this machine is {here}. {_remedy(library)}"
        )


def _remedy(library: Library) -> str:
    place = workspace.library_place(library.manifest_path.parent)
    if place is not None and place.source == "package":
        return "Download the package again"
    if place is not None and place.distribution is not None:
        # The name alone is not enough: no index may have the wheel.
        return (
            f"Install the wheel of {place.distribution} again: "
            "pip install --force-reinstall --no-deps FILE.whl"
        )
    return f"Build it again: {rebuild_command(library)}"


# The libraries that are open, until the process ends.
_modules: dict[Path, Any] = {}


def _open(library: Library, file: BinaryIO) -> Any:
    """Open the library in `file`, whatever lies at its path by now, and return the module.

    Raises LibraryError naming the library.
    """
    import tvm_ffi

    try:
        place = _MEMORY if os.access(_MEMORY, os.W_OK) else tempfile.gettempdir()
        _remove_abandoned(place)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as scratch:
            # The loader wants a name, and a new name for each library: it would take a second
            # file that is called /proc/self/fd/7 for the first one.
            name = Path(scratch) / library.path.name
            descriptor = _DESCRIPTORS / str(file.fileno())
            if descriptor.exists():
                name.symlink_to(descriptor)
            else:
                _copy(library, file, name)
            try:
                module = tvm_ffi.load_module(name)
            # The type of the loader's own error is not part of its interface.
            except Exception as error:
                words = str(error).replace(str(name), str(library.path))
                raise LibraryError(
                    f"library {library.path} cannot be opened: {words}. {_remedy(library)}"
                ) from error
    except OSError as error:
        raise LibraryError(
            f"library {library.path} cannot be opened, because there is no directory for a "
            f"temporary file: {reason(error)}. Set TMPDIR to a directory that you can write."
        ) from error
    return _modules.setdefault(library.path, module)


@functools.cache
def _remove_abandoned(place: str) -> None:
    """Remove the links of processes that were killed while they opened a library."""
    for directory in Path(place).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = directory.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _LONG_AGO:
                continue
            for link in directory.iterdir():
                if os.readlink(link).startswith(f"{_DESCRIPTORS}/"):
                    link.unlink()
            directory.rmdir()


def _copy(library: Library, file: BinaryIO, path: Path) -> None:
    """Copy a library that was verified to a path that only this process knows."""
    file.seek(0)
    path.write_bytes(file.read())
    if file_sha256(path) != library.manifest.sha256:
        raise LibraryError(f"library {library.path} was changed while natc opened it.")
