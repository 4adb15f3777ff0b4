"""Read from a shared library's file which libraries, symbols and glibc it needs.

The format is ELF, 64 bit, little endian ("System V ABI", and "Linux Standard Base Core", chapter
10.7, for symbol versions). The library is not run, and no other program is needed.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

# The C library of "manylinux_2_28" (PEP 600): Linux of 2019 and later has it or a newer one.
PORTABLE_GLIBC = (2, 28)
# e_machine of the processors that natc compiles host code for.
MACHINES = {62: "x86_64", 183: "aarch64"}
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")
_VERNEED = struct.Struct("<HHIII")
_VERNAUX = struct.Struct("<IHHII")
_DYNAMIC_SECTION, _DYNSYM, _NOBITS = 6, 11, 8
_VERSYM, _VERNEED_SECTION = 0x6FFFFFFF, 0x6FFFFFFE
_NEEDED = 1
_WEAK = 2
# A damaged file may have names of megabytes, each of which would be copied for every symbol.
_LONGEST_NAME = 1000


class ElfError(ValueError):
    """The file is no shared library, or is damaged; the message is a clause."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol that a library needs: its name, its version or "", and if it may be missing."""

    name: str
    version: str
    weak: bool


@dataclass(frozen=True, slots=True)
class SharedLibrary:
    """A shared library as the loader sees it.

    machine: the processor, `x86_64` or `aarch64`; for any other, its number as text.
    needed: libraries that are loaded with it. defined: symbols it shows; undefined: symbols it
    needs. device_code: content of section `.nv_fatbin`, or empty.
    """

    machine: str
    needed: tuple[str, ...]
    defined: tuple[str, ...]
    undefined: tuple[Symbol, ...]
    device_code: bytes

    @property
    def glibc(self) -> tuple[int, ...]:
        """The newest version of the C library that a symbol asks for; (0,) if none does."""
        matches = (re.fullmatch(r"GLIBC_([0-9.]+)", symbol.version) for symbol in self.undefined)
        return max((parse_version(match[1]) for match in matches if match), default=(0,))

    @property
    def glibc_text(self) -> str:
        """`glibc` as text, such as `2.17`; "" if no symbol asks for a version."""
        return ".".join(map(str, self.glibc)) if self.glibc > (0,) else ""


@dataclass(frozen=True, slots=True)
class _Section:
    name: int
    type: int
    offset: int
    size: int
    link: int


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version such as `2.28`; (0,) for none."""
    return tuple(int(part) for part in text.split(".") if part.isdecimal()) or (0,)


def machine_of(start: bytes, size: int) -> str:
    """Return the processor that a library is for, from its first 64 bytes and its size in bytes.

    Raises ElfError if it is no ELF file, or shorter than its header says.
    """
    if start[:4] != b"\x7fELF":
        raise ElfError("it is not an ELF file")
    if len(start) < _HEADER.size:
        raise ElfError("it is cut short")
    if start[4:6] != b"\x02\x01":
        raise ElfError("it is not for a 64-bit little-endian machine")
    fields = _HEADER.unpack_from(start)
    table, entry_size, count = fields[6], fields[11], fields[12]
    if table == 0 or table + entry_size * count > size:
        raise ElfError("it is cut short")
    return MACHINES.get(fields[2], f"machine {fields[2]}")


def read(data: bytes) -> SharedLibrary:
    """Return the contents of a shared library's file; raises ElfError for a damaged file."""
    machine = machine_of(data[: _HEADER.size], len(data))
    try:
        return _read(data, machine)
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        if isinstance(error, ElfError):
            raise
        raise ElfError("it is damaged") from error


def _read(data: bytes, machine: str) -> SharedLibrary:
    fields = _HEADER.unpack_from(data)
    table, entry_size, count, names = fields[6], fields[11], fields[12], fields[13]
    sections = []
    for index in range(count):
        name, kind, _, _, offset, size, link, *_ = _SECTION.unpack_from(
            data, table + index * entry_size
        )
        if kind != _NOBITS and offset + size > len(data):
            raise ElfError("it is cut short")
        sections.append(_Section(name, kind, offset, size, link))
    by_type = {section.type: section for section in sections}
    if _DYNSYM not in by_type or _DYNAMIC_SECTION not in by_type:
        raise ElfError("it is not a shared library")
    versions = _versions(data, sections, by_type)
    symbols = by_type[_DYNSYM]
    text = sections[symbols.link]
    defined, undefined = [], []
    for index in range(1, symbols.size // _SYMBOL.size):
        name, info, _, where, _, _ = _SYMBOL.unpack_from(
            data, symbols.offset + index * _SYMBOL.size
        )
        symbol = _text(data, text, name)
        if where:
            defined.append(symbol)
        elif symbol:
            undefined.append(Symbol(symbol, versions.get(index, ""), info >> 4 == _WEAK))
    device = [s for s in sections if _text(data, sections[names], s.name) == ".nv_fatbin"]
    if sum(section.size for section in device) > len(data):
        raise ElfError("its sections overlap")
    return SharedLibrary(
        machine,
        tuple(_needed(data, sections, by_type[_DYNAMIC_SECTION])),
        tuple(sorted(defined)),
        tuple(sorted(undefined, key=lambda symbol: symbol.name)),
        b"".join(data[s.offset : s.offset + s.size] for s in device),
    )


def _text(data: bytes, table: _Section, offset: int) -> str:
    start = table.offset + offset
    return data[start : data.index(b"\0", start, start + _LONGEST_NAME)].decode()


def _needed(data: bytes, sections: list[_Section], dynamic: _Section) -> list[str]:
    libraries = []
    for start in range(dynamic.offset, dynamic.offset + dynamic.size, _DYNAMIC.size):
        tag, value = _DYNAMIC.unpack_from(data, start)
        if tag == _NEEDED:
            libraries.append(_text(data, sections[dynamic.link], value))
    return libraries


def _versions(
    data: bytes, sections: list[_Section], by_type: dict[int, _Section]
) -> dict[int, str]:
    """Return the version that each symbol asks for, by the symbol's index."""
    if _VERSYM not in by_type or _VERNEED_SECTION not in by_type:
        return {}
    section = by_type[_VERNEED_SECTION]
    names: dict[int, str] = {}
    position = section.offset
    while True:
        _, count, _, first, following = _VERNEED.unpack_from(data, position)
        entry = position + first
        for _ in range(count):
            _, _, index, name, step = _VERNAUX.unpack_from(data, entry)
            # Without this, a damaged step or count would lead here for hours.
            if index in names:
                raise ElfError("it has two versions of one number")
            names[index] = _text(data, sections[section.link], name)
            entry += step
        if not following or not count:
            break
        position += following
    table = by_type[_VERSYM]
    indices = struct.unpack_from(f"<{table.size // 2}H", data, table.offset)
    return {
        position: names[index & 0x7FFF]
        for position, index in enumerate(indices)
        if index & 0x7FFF in names
    }
