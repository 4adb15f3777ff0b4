"""Finding libraries in directories, and manifests that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from natc.errors import LibraryError
from natc.runtime.trust import distrust, noexec
from natc.spec import KernelSpec
from natc.store.manifest import SUFFIX, Manifest, load_manifest
from natc.targets import Target


@dataclass(frozen=True, slots=True)
class Library:
    """A library: its manifest, and the manifest's file."""

    manifest: Manifest
    manifest_path: Path

    @property
    def path(self) -> Path:
        """The shared object; it may have been deleted since the manifest was written."""
        return self.manifest_path.with_name(self.manifest.library)

    @property
    def spec(self) -> KernelSpec:
        """The spec that the library implements."""
        return KernelSpec.parse(self.manifest.spec)

    @property
    def targets(self) -> list[Target]:
        """The targets that the library holds code for."""
        return self.manifest.target.targets


@dataclass(frozen=True, slots=True)
class Rejection:
    """A library or manifest that was passed over; reason: a clause without a full stop."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of a search: directories in order, libraries, unreadable manifests."""

    directories: tuple[Path, ...]
    libraries: tuple[Library, ...]
    unreadable: tuple[Rejection, ...]


def scan(directories: Iterable[Path]) -> Scan:
    """Read every manifest in some directories, in order; a damaged manifest hides no other.

    Directories below are not searched. A directory that does not exist holds no library. In a
    directory that others can write, no manifest is read.
    """
    order = tuple(dict.fromkeys(directories))
    libraries: list[Library] = []
    unreadable: list[Rejection] = []
    for directory in order:
        try:
            paths = sorted(p for p in directory.iterdir() if _is_manifest(p))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unreadable.append(Rejection(directory, f"directory cannot be read: {error.strerror}"))
            continue
        if not paths:
            continue
        danger = distrust(directory) or noexec(directory)
        if danger:
            unreadable.append(Rejection(directory, f"its libraries are not loaded: {danger}"))
            continue
        for path in paths:
            try:
                libraries.append(Library(load_manifest(path), path))
            except LibraryError as error:
                # Without the path, which is in the rejection already.
                reason = str(error).removeprefix(f"manifest {path} ").rstrip(".")
                unreadable.append(Rejection(path, reason))
    return Scan(order, tuple(libraries), tuple(unreadable))


def _is_manifest(path: Path) -> bool:
    # A name that begins with a dot is a temporary file of a writer.
    return path.suffix == SUFFIX and not path.name.startswith(".")
