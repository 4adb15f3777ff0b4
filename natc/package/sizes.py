"""How many bytes of a package are for which architecture."""

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
    """Bytes of code for one architecture, as it is loaded and as a package holds it."""

    bytes: int
    compressed: int


def sizes(pieces: Sequence[Piece]) -> dict[str, Size]:
    """Return the size of each architecture's code, and of the `host` code of CUDA libraries.

    Compressed sizes are of each part by itself and add up to nearly the package's.
    """
    found: dict[str, Size] = {}
    for piece in pieces:
        code = piece.code()
        target = piece.manifest.target
        if target.kind == "llvm":
            _add(found, target.archs[0], len(code), _compressed(code))
            continue
        device = elf.read(code).device_code
        for image in images(device):
            _add(found, image.arch, len(image.content), _compressed(image.content))
        # Measured without the device code, wherever it lies in the file.
        at = code.find(device)
        host = code[:at] + code[at + len(device) :] if device else code
        _add(found, HOST, len(host), _compressed(host))
    return dict(sorted(found.items()))


def _compressed(data: bytes) -> int:
    return len(zlib.compress(data, 9))


def _add(found: dict[str, Size], name: str, size: int, compressed: int) -> None:
    before = found.get(name, Size(0, 0))
    found[name] = Size(before.bytes + size, before.compressed + compressed)
