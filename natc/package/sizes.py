"""The sizes of a package's code for each architecture."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
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
        code = piece.code()
        target = piece.manifest.target
        if target.kind == "llvm":
            _add(by_name, target.archs[0], len(code), _compressed(code))
            continue
        device = elf.read(code).device_code
        for image in images(device):
            _add(by_name, image.arch, len(image.content), _compressed(image.content))
        # Measured without the device code, wherever it lies in the file.
        at = code.find(device)
        host = code[:at] + code[at + len(device) :] if device else code
        _add(by_name, HOST, len(host), _compressed(host))
    return dict(sorted(by_name.items()))


def _compressed(data: bytes) -> int:
    return len(zlib.compress(data, 9))


def _add(by_name: dict[str, Size], name: str, size: int, compressed: int) -> None:
    before = by_name.get(name, Size(0, 0))
    by_name[name] = Size(before.bytes + size, before.compressed + compressed)
