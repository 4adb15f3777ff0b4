"""The sizes of a package's code for each architecture."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from natc.package.pieces import Piece
from natc.store import elf
from natc.store.fatbin import images

# Code that runs on the host: checks arguments, computes grids, launches.
HOST = "host"


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of code for an architecture, as loaded and as compressed in a package."""

    bytes: int
    compressed: int


def sizes(pieces: Sequence[Piece]) -> dict[str, Size]:
    """Return the size of each architecture's code, and of the `host` code of CUDA libraries.

    Each part is compressed alone, so the compressed sizes add up to about the package's size.
    """
    by_name: dict[str, Size] = {}
    for piece in pieces:
        for name, code in _parts(piece):
            before, compressed = by_name.get(name, Size(0, 0)), len(zlib.compress(code, 9))
            by_name[name] = Size(before.bytes + len(code), before.compressed + compressed)
    return dict(sorted(by_name.items()))


def _parts(piece: Piece) -> Iterator[tuple[str, bytes]]:
    """Yield the parts of a library's code, each with the name of its architecture."""
    code, target = piece.code(), piece.manifest.target
    if target.kind == "llvm":
        yield target.archs[0], code
        return
    device = elf.read(code).device_code
    for image in images(device):
        yield image.arch, image.content
    # Without the device code, wherever it lies in the file.
    at = code.find(device)
    yield HOST, code[:at] + code[at + len(device) :] if device else code
