"""What a kernel takes of a GPU, as the compiler tells it, and whether it can run at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from natc.targets import Target

# Of one multiprocessor, and of one block (CUDA C++ programming guide, table "Technical
# specifications per compute capability").
_REGISTERS = 65536
_MOST_THREADS = 1024
# Registers are handed to warps in pieces of so many (same guide, "Hardware multithreading").
_PIECE = 256
_WARP = 32

_KERNEL = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'")
_NUMBERS = {
    "registers": re.compile(r"Used (\d+) registers"),
    "shared_bytes": re.compile(r"(\d+) bytes smem"),
    "stack_bytes": re.compile(r"(\d+) bytes stack frame"),
    "spilled_bytes": re.compile(r"(\d+) bytes spill stores"),
}
_BOUNDS = re.compile(r"__launch_bounds__\((?P<threads>\d+)[^)]*\)\s+(?P<name>\w+)\s*\(")

# What kernels for tensor cores call, and others do not (launcher/mma.cuh).
_TENSOR_CORES = "natc_mma_"


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What one kernel takes: registers of a thread, bytes of a block, threads of a block.

    stack_bytes: local memory of a thread, of which spilled_bytes are registers that did not fit.
    threads: 0 where the source does not say.
    """

    kernel: str
    registers: int = 0
    shared_bytes: int = 0
    stack_bytes: int = 0
    spilled_bytes: int = 0
    threads: int = 0


def resources(said: str, source: str = "") -> list[Resources]:
    """Return what kernels take, from what `nvcc -Xptxas=-v` said and the CUDA source."""
    threads = {match["name"]: int(match["threads"]) for match in _BOUNDS.finditer(source)}
    starts = list(_KERNEL.finditer(said))
    found = []
    for number, match in enumerate(starts, 1):
        end = starts[number].start() if number < len(starts) else len(said)
        part = said[match.start() : end]
        numbers = {
            name: max((int(n) for n in pattern.findall(part)), default=0)
            for name, pattern in _NUMBERS.items()
        }
        name = match["name"]
        found.append(Resources(kernel=name, threads=threads.get(name, 0), **numbers))
    return found


def measured(found: Sequence[Resources], source: str) -> list[Resources]:
    """Return the kernels that a search measures: beside one for tensor cores, no other.

    The others serve calls that a search does not make, whatever its candidates are.
    """
    starts = list(_BOUNDS.finditer(source))
    ends = [*(match.start() for match in starts[1:]), len(source)]
    names = {
        match["name"]
        for match, end in zip(starts, ends)
        if _TENSOR_CORES in source[match.end() : end]
    }
    return [one for one in found if not names or one.kernel in names]


def hopeless(
    found: Sequence[Resources], target: Target, most_shared_bytes: int, *, may_spill: bool = False
) -> str | None:
    """Return why kernels need not be measured, or None: they spill, or no block of them fits.

    most_shared_bytes: that a block may have on the target. may_spill: spilling is no reason.
    """
    for one in found:
        if one.spilled_bytes and not may_spill:
            return f"spills {one.spilled_bytes} bytes of registers"
        if one.shared_bytes > most_shared_bytes:
            return (
                f"takes {one.shared_bytes} bytes of shared memory; a block of {target.arch} has "
                f"{most_shared_bytes}"
            )
        if one.threads > _MOST_THREADS:
            return f"has {one.threads} threads in a block; {target.arch} has {_MOST_THREADS}"
        if _registers(one) > _REGISTERS:
            return (
                f"takes {_registers(one)} registers for a block of {one.threads} threads; "
                f"{target.arch} has {_REGISTERS}"
            )
    return None


def _registers(one: Resources) -> int:
    warps = -(-one.threads // _WARP)
    return warps * -(-one.registers * _WARP // _PIECE) * _PIECE
