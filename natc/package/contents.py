"""The files of a package before they are packed: the libraries, their list, its signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from natc.package.pieces import Piece
from natc.store.manifest import SUFFIX
from natc.store.signing import SIGNATURE, SUMS, Signer, digest, sums

# Name -> a function that returns the content, because a package may be larger than memory.
Contents = Mapping[str, Callable[[], bytes]]


def library_files(pieces: Sequence[Piece], name: str, signer: Signer | None = None) -> Contents:
    """Return the files of some libraries, with the list `NAME.sha256` and perhaps its signature.

    Their functions raise LibraryError for a library whose hash is not the manifest's.
    """
    files: dict[str, Callable[[], bytes]] = {}
    digests: dict[str, str] = {}
    for piece in pieces:
        data, manifest_name = piece.manifest_bytes(), f"{piece.manifest.name}{SUFFIX}"
        files[piece.manifest.library] = piece.code
        digests[piece.manifest.library] = piece.manifest.sha256
        files[manifest_name] = constant(data)
        digests[manifest_name] = digest(data)
    listed = sums(digests)
    files[name + SUMS] = constant(listed)
    if signer is not None:
        files[name + SIGNATURE] = constant(signer.sign(listed))
    return files


def constant(data: bytes) -> Callable[[], bytes]:
    """Return a function that returns some bytes."""
    return lambda: data


def below(folder: str, files: Contents) -> Contents:
    """Return the files with a folder before their names."""
    return {f"{folder}/{name}": content for name, content in files.items()}


def in_order(files: Contents) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents, sorted by name, so that equal packages have equal bytes."""
    for name in sorted(files):
        yield name, files[name]()
