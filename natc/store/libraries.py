"""Writing a library and then its manifest, so that whoever reads finds two that fit together."""

from __future__ import annotations

import contextlib
import glob
import re
from itertools import chain
from pathlib import Path

from natc.store.files import locked, write_atomically
from natc.store.manifest import SUFFIX, Manifest, dump


def write_library(directory: Path, manifest: Manifest, code: bytes) -> Path:
    """Write a library and its manifest into a directory; return the manifest's path.

    They replace an older library of the same spec and target. Killed at any time, this leaves the
    old manifest with the old library or the new manifest with the new one; the next writer removes
    the pieces. One writer at a time. Raises NatcError naming what cannot be written.
    """
    path = directory / f"{manifest.name}{SUFFIX}"
    with locked(directory):
        write_atomically(directory / manifest.library, code)
        write_atomically(path, dump(manifest))
        replaced = (file for file in libraries_of(path) if file.name != manifest.library)
        pieces = (directory.glob(f".{name}.*.tmp") for name in (path.name, f"{path.stem}.*.so"))
        for file in chain(replaced, *pieces):
            with contextlib.suppress(OSError):
                file.unlink()
    return path


def libraries_of(path: Path) -> list[Path]:
    """Return the libraries of a manifest's name, `SPEC.TARGET.HASH.so`, beside the manifest."""
    pattern = re.compile(rf"{re.escape(path.stem)}\.[0-9a-f]+\.so")
    files = path.parent.glob(f"{glob.escape(path.stem)}.*.so")
    return sorted(file for file in files if pattern.fullmatch(file.name))
