"""Verifying and opening libraries; the only place that loads machine code."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from natc.errors import LibraryError
from natc.host import detect
from natc.runtime.commands import rebuild_command
from natc.runtime.scan import Library
from natc.runtime.select import Choice
from natc.runtime.trust import distrust_file
from natc.store import elf, workspace
from natc.store.files import reason
from natc.store.manifest import file_sha256, load_manifest


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
    expected = library.manifest.sha256
    try:
        actual = file_sha256(library.path)
    except FileNotFoundError as error:
        replacement = Library(load_manifest(library.manifest_path), library.manifest_path)
        if replacement.path != library.path:
            return verify(replacement)
        raise _unreadable(library, error) from error
    except OSError as error:
        raise _unreadable(library, error) from error
    if actual != expected:
        raise LibraryError(
            f"library {library.path} is not the file that its manifest vouches for: expected "
            f"sha256 {expected}, found {actual}. Nothing of it was run. "
            f"{_remedy(library)}"
        )
    return library


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
    library = check(choice.library)
    try:
        module = _open(library.path)
    # The type of the loader's own error is not part of its interface.
    except Exception as error:
        raise LibraryError(
            f"library {library.path} cannot be opened: {error}. {_remedy(library)}"
        ) from error
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
    file, or if it is for another processor.
    """
    library = verify(library)
    _check_owner(library)
    _check_machine(library)
    return library


def _check_owner(library: Library) -> None:
    for path in (library.path, library.manifest_path):
        danger = distrust_file(path)
        if danger:
            raise LibraryError(f"library {library.path} is not loaded: {danger}.")


def _check_machine(library: Library) -> None:
    # On other systems, libraries have another format; their loader checks it.
    if sys.platform != "linux":
        return
    path, here = library.path, detect.host_machine()
    try:
        with open(path, "rb") as file:
            machine = elf.machine_of(file.read(64), path.stat().st_size)
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


@functools.cache
def _open(path: Path) -> Any:
    """Open a library once; it stays open until the process ends."""
    import tvm_ffi

    return tvm_ffi.load_module(str(path))
