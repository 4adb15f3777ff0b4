"""Verifying and opening the library of a choice; the only place that loads machine code."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
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
from natc.store.manifest import file_sha256
from natc.store.replace import vouching

# Path -> (hash, module) of what this process has opened; a library stays open until exit.
_opened: dict[Path, tuple[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded function: call it as `function(query, key, value, [rpb,] output, [lse,] ...)`.

    alignment: bytes that every data pointer must be a multiple of, else the process may crash.
    """

    function: Any
    alignment: int
    choice: Choice


def verify(library: Library) -> Library:
    """Check that a library is the file its manifest vouches for, and return it.

    One that was replaced since it was found is returned with its new manifest. Raises LibraryError
    naming the file, both hashes and the command that brings it back.
    """
    expected = library.manifest.sha256
    try:
        actual = file_sha256(library.path)
    except OSError as error:
        raise LibraryError(
            f"library {library.path} cannot be read: {reason(error)}. {_remedy(library)}"
        ) from error
    if actual == expected:
        return library
    replaced = _replaced(library)
    if replaced is None:
        raise LibraryError(
            f"library {library.path} is not the file that its manifest vouches for: expected "
            f"sha256 {expected}, found {actual}. Nothing of it was run. "
            f"{_remedy(library)}"
        )
    return replaced


def _replaced(library: Library) -> Library | None:
    """Return what another process put in place of a library, or None if that is not whole."""
    try:
        manifest, found = vouching(library.manifest_path)
    except (LibraryError, OSError):
        return None
    same = (manifest.spec, manifest.library) == (library.manifest.spec, library.manifest.library)
    return Library(manifest, library.manifest_path) if same and found == manifest.sha256 else None


def load(choice: Choice) -> Kernel:
    """Verify a library, open it, and return the chosen function.

    Not thread-safe: the caller holds a lock. Raises LibraryError naming the file when it is not
    what its manifest says, may have been written by others, is for another processor, cannot be
    opened, or has no such function.
    """
    library = check(choice.library)
    module = _open(library)
    try:
        function = module[choice.function]
    except AttributeError as error:
        raise LibraryError(
            f"library {library.path} has no function {choice.function!r}, which its manifest "
            f"names. {_remedy(library)}"
        ) from error
    return Kernel(function, library.manifest.alignment, replace(choice, library=library))


def check(library: Library) -> Library:
    """Check all that can be known of a library before it is opened, and return it, as `verify`.

    Raises LibraryError when it is not what its manifest vouches for, may have been written by
    others, or is for another processor.
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
    # Elsewhere libraries have another format, and the system's loader is left to judge.
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
    if place is not None and place.distribution is not None:
        # Its name alone would do only where an index has it.
        return (
            f"Install the wheel of {place.distribution} again: "
            "pip install --force-reinstall --no-deps FILE.whl"
        )
    return f"Build it again: {rebuild_command(library)}"


def _open(library: Library) -> Any:
    import tvm_ffi

    path, digest = library.path, library.manifest.sha256
    before = _opened.get(path)
    if before is not None and before[0] == digest:
        return before[1]
    with contextlib.ExitStack() as stack:
        source = path
        if before is not None:
            # The system's loader knows a library by its path and would hand back the old code.
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="natc-"))
            source = Path(shutil.copy2(path, Path(directory) / path.name))
        try:
            module = tvm_ffi.load_module(str(source))
        # The loader's own error type is not part of its interface.
        except Exception as error:
            raise LibraryError(
                f"library {path} cannot be opened: {error}. {_remedy(library)}"
            ) from error
    _opened[path] = (digest, module)
    return module
