"""Which kernel libraries lie in the library directories, and which manifests cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from natc.errors import LibraryError
from natc.runtime.trust import distrust
from natc.spec import KernelSpec
from natc.store.manifest import SUFFIX, Manifest, load_manifest
from natc.targets import Target


@dataclass(frozen=True, slots=True)
class Library:
    """One library that was found: its manifest, and the file that the manifest came from."""

    manifest: Manifest
    manifest_path: Path

    @property
    def path(self) -> Path:
        """The shared object; it may have been deleted since the manifest was written."""
        return self.manifest_path.with_name(self.manifest.library)

    @property
    def spec(self) -> KernelSpec:
        """What the library computes."""
        return KernelSpec.parse(self.manifest.spec)

    @property
    def targets(self) -> list[Target]:
        """The targets that the library holds code for."""
        return [Target(self.manifest.target.kind, arch) for arch in self.manifest.target.archs]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A library or manifest that was passed over, and why, as a clause without a full stop."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What a search found: directories in order, readable libraries, unreadable manifests."""

    directories: tuple[Path, ...]
    libraries: tuple[Library, ...]
    unreadable: tuple[Rejection, ...]


def scan(directories: Iterable[Path]) -> Scan:
    """Read every manifest in some directories, in order; one that is bad hides no other.

    directories: where to look, not below; one that does not exist holds nothing, and what lies in
        one that others can write is not read.
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
        danger = distrust(directory)
        if danger:
            unreadable.append(Rejection(directory, f"its libraries are not loaded: {danger}"))
            continue
        for path in paths:
            try:
                libraries.append(Library(load_manifest(path), path))
            except LibraryError as error:
                # The path is in the rejection already.
                said = str(error).removeprefix(f"manifest {path} ").rstrip(".")
                unreadable.append(Rejection(path, said))
    return Scan(order, tuple(libraries), tuple(unreadable))


def _is_manifest(path: Path) -> bool:
    # Names with a dot in front are files that a writer has not finished.
    return path.suffix == SUFFIX and not path.name.startswith(".")
