"""Find out which architectures a library's device code is for, and how many bytes each takes.

Device code lies in fatbins: a header, then entries of machine code or PTX, each with its own
header. `cuobjdump --list-elf` reads the same format. NVIDIA does not document it; the fields that
are read here have not moved since CUDA 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_MAGIC = 0xBA55ED50
_FATBIN = struct.Struct("<IHHQ")
# kind, version, header size, payload size; the architecture's number is at byte 28.
_ENTRY = struct.Struct("<HHIQ")
_ARCH = struct.Struct("<I")
_ARCH_AT = 28
_PTX = 1


@dataclass(frozen=True, slots=True)
class Image:
    """One entry: its architecture, `sm_90`, or `compute_90` for PTX, and its content."""

    arch: str
    content: bytes


def images(section: bytes) -> list[Image]:
    """Return the entries of all fatbins in a section, in order.

    Skips an entry that sticks out of its fatbin, and what follows it there.
    """
    entries: list[Image] = []
    position = 0
    while True:
        position = section.find(_MAGIC.to_bytes(4, "little"), position)
        if position < 0 or position + _FATBIN.size > len(section):
            return entries
        _, _, header, size = _FATBIN.unpack_from(section, position)
        start, end = position + header, min(position + header + size, len(section))
        while start + _ARCH_AT + _ARCH.size <= end:
            kind, _, header, size = _ENTRY.unpack_from(section, start)
            (number,) = _ARCH.unpack_from(section, start + _ARCH_AT)
            content, start = start + header, start + header + size
            if header < _ARCH_AT + _ARCH.size or start > end:
                break
            arch = f"{'compute' if kind == _PTX else 'sm'}_{number}"
            entries.append(Image(arch, section[content:start]))
        position = max(end, position + _FATBIN.size)
