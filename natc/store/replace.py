"""Replacing a library and its manifest together, though they are two files.

The manifest vouches for one content of the library. So the new manifest is written under another
name first, then the library is replaced, then the manifest: whenever a process is killed, one of
the two manifests vouches for the library that lies there. Whoever finds that the manifest does not
looks at the other, and the next writer finishes what was begun.
"""

from __future__ import annotations

import contextlib
import glob
from pathlib import Path

from natc.errors import LibraryError, NatcError
from natc.store.files import locked, reason, write_atomically
from natc.store.manifest import Manifest, dump, file_sha256, load_manifest

# Between reading a manifest and its library, another process may replace both: then once more.
_ATTEMPTS = 3


def write_library(path: Path, code: bytes, manifest: Manifest) -> None:
    """Write a library and its manifest, `path`, in place of what is there, one writer at a time.

    Whenever this ends, of a kill too, `vouching` finds a manifest of what is there: the old
    library or the new one. Raises NatcError naming what cannot be written.
    """
    with locked(path.parent):
        _finish(path)
        write_atomically(_pending(path), dump(manifest))
        write_atomically(path.with_name(manifest.library), code)
        _rename(_pending(path), path)


def vouching(path: Path) -> tuple[Manifest, str]:
    """Return the manifest that vouches for a library now, and the hash of the library.

    path: the manifest's. It is that of a replacement which was cut off, or is under way, where
    that is what vouches; where none does, it is the one that lies at `path`. Raises LibraryError
    for a manifest that cannot be read, and OSError where the library cannot be.
    """
    for _ in range(_ATTEMPTS):
        manifest = load_manifest(path)
        found = file_sha256(path.with_name(manifest.library))
        if found == manifest.sha256:
            break
        with contextlib.suppress(LibraryError):
            pending = load_manifest(_pending(path))
            if (pending.library, pending.sha256) == (manifest.library, found):
                return pending, found
    return manifest, found


def _finish(path: Path) -> None:
    """Do what a writer that was killed left undone: finish its replacement, remove its pieces."""
    pending = _pending(path)
    # No other writer is at work: this one holds the lock.
    for name in (pending.name, path.name, path.with_suffix("").name + ".so"):
        for piece in path.parent.glob(f".{glob.escape(name)}.*.tmp"):
            piece.unlink(missing_ok=True)
    with contextlib.suppress(LibraryError, OSError):
        manifest = load_manifest(pending)
        if file_sha256(path.with_name(manifest.library)) == manifest.sha256:
            _rename(pending, path)


def _pending(path: Path) -> Path:
    # With a dot in front, searches pass over it.
    return path.with_name(f".{path.name}.next")


def _rename(old: Path, new: Path) -> None:
    try:
        old.replace(new)
    except OSError as error:
        raise NatcError(f"file {new} cannot be written: {reason(error)}.") from error
