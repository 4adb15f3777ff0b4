"""The libraries of a package, read from a directory, with manifests that do not depend on time."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from natc.errors import LibraryError
from natc.runtime.load import verify
from natc.runtime.scan import Library, scan
from natc.spec import KernelSpec
from natc.store.files import reason
from natc.store.manifest import Manifest, dump
from natc.targets import ARCHS


@dataclass(frozen=True, slots=True)
class Piece:
    """A library's file, and its manifest in the package."""

    path: Path
    manifest: Manifest

    @property
    def spec(self) -> KernelSpec:
        """The spec that the library implements."""
        return KernelSpec.parse(self.manifest.spec)

    def code(self) -> bytes:
        """Return the shared object; raises LibraryError if its hash is not the manifest's."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise LibraryError(f"library {self.path} cannot be read: {reason(error)}.") from error
        actual = hashlib.sha256(data).hexdigest()
        if actual != self.manifest.sha256:
            raise LibraryError(
                f"library {self.path} is not the file that its manifest vouches for: expected "
                f"sha256 {self.manifest.sha256}, found {actual}."
            )
        return data

    def manifest_bytes(self) -> bytes:
        """Return the content of the manifest's file."""
        return dump(self.manifest).encode()


def read_pieces(directory: Path, epoch: int) -> list[Piece]:
    """Return the libraries of a directory, sorted by name.

    epoch: the time of the build that manifests get, in seconds since 1970, so that equal libraries
    make equal packages. Raises LibraryError for a damaged manifest, for a library whose hash is
    not the manifest's, and if there is no library.
    """
    search = scan([directory])
    if search.unreadable:
        bad = search.unreadable[0]
        raise LibraryError(f"{bad.path} cannot be packaged: {bad.reason}.")
    if not search.libraries:
        raise LibraryError(f"directory {directory} holds no library.")
    return [piece(verify(library), epoch) for library in search.libraries]


def piece(library: Library, epoch: int) -> Piece:
    """Return a library as a piece of a package; epoch: the time of the build in its manifest."""
    built = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    manifest = dataclasses.replace(library.manifest, built_at=built.isoformat(timespec="seconds"))
    return Piece(library.path, manifest)


def kind_of(pieces: Sequence[Piece]) -> str:
    """Return the kind of target, `llvm` or `cuda`, that all pieces share.

    Raises LibraryError when they differ: one package is for one kind of device.
    """
    kinds = sorted({piece.manifest.target.kind for piece in pieces})
    if len(kinds) != 1:
        raise LibraryError(
            f"these libraries are for {' and '.join(kinds)}; a package holds one kind. Keep them "
            "in two directories."
        )
    return kinds[0]


def archs_of(pieces: Sequence[Piece]) -> list[str]:
    """Return the architectures that the pieces hold code for, oldest first."""
    archs = {arch for piece in pieces for arch in piece.manifest.target.archs}
    return [arch for names in ARCHS.values() for arch in names if arch in archs]


def target_name(pieces: Sequence[Piece]) -> str:
    """Return the target in names: `cuda-sm_90` for one architecture, else `cuda` or `llvm`."""
    kind, archs = kind_of(pieces), archs_of(pieces)
    return f"{kind}-{archs[0]}" if len(archs) == 1 else kind
