"""Registers and memory that kernels need, as nvcc reports them, and whether a GPU has enough."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from natc.targets import Target

# Registers of a multiprocessor and threads of a block (CUDA C++ programming guide, table
# "Technical specifications per compute capability").
_REGISTERS = 65536
_MOST_THREADS = 1024
# A warp gets registers in multiples of this (same guide, "Hardware multithreading").
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

# Only kernels for tensor cores call a function of this prefix (launcher/mma.cuh).
_TENSOR_CORES = "natc_mma_"


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """The resources of one kernel: registers of a thread; shared memory and threads of a block.

    stack_bytes: local memory of a thread. spilled_bytes: the part of it that holds registers which
    did not fit. threads: 0 if the source does not give the number.
    """

    kernel: str
    registers: int = 0
    shared_bytes: int = 0
    stack_bytes: int = 0
    spilled_bytes: int = 0
    threads: int = 0


def resources(messages: str, source: str = "") -> list[Resources]:
    """Return the resources of each kernel from the output of `nvcc -Xptxas=-v`.

    source: the CUDA source, which has the number of threads.
    """
    threads = {match["name"]: int(match["threads"]) for match in _BOUNDS.finditer(source)}
    starts = list(_KERNEL.finditer(messages))
    kernels = []
    for number, match in enumerate(starts, 1):
        end = starts[number].start() if number < len(starts) else len(messages)
        part = messages[match.start() : end]
        numbers = {
            name: max((int(n) for n in pattern.findall(part)), default=0)
            for name, pattern in _NUMBERS.items()
        }
        name = match["name"]
        kernels.append(Resources(kernel=name, threads=threads.get(name, 0), **numbers))
    return kernels


def measured(kernels: Sequence[Resources], source: str) -> list[Resources]:
    """Return the kernels that a search measures: those for tensor cores, if there are any.

    Kernels for CUDA cores beside them serve only calls that a search does not make.
    """
    starts = list(_BOUNDS.finditer(source))
    ends = [*(match.start() for match in starts[1:]), len(source)]
    names = {
        match["name"]
        for match, end in zip(starts, ends)
        if _TENSOR_CORES in source[match.end() : end]
    }
    return [kernel for kernel in kernels if not names or kernel.kernel in names]


def features_of(kernels: Sequence[Resources]) -> dict[str, float]:
    """Return the largest of each resource that any of the kernels needs, for a search's model."""
    names = ("registers", "shared_bytes", "stack_bytes", "spilled_bytes", "threads")
    return {
        name: float(max((getattr(kernel, name) for kernel in kernels), default=0))
        for name in names
    }


def hopeless(
    kernels: Sequence[Resources],
    target: Target,
    most_shared_bytes: int,
    *,
    may_spill: bool = False,
) -> str | None:
    """Return why kernels need not be measured, or None: one spills, or a block does not fit.

    most_shared_bytes: the most that a block may have on the target. may_spill: accept spilling.
    """
    for kernel in kernels:
        if kernel.spilled_bytes and not may_spill:
            return f"spills {kernel.spilled_bytes} bytes of registers"
        if kernel.shared_bytes > most_shared_bytes:
            return (
                f"takes {kernel.shared_bytes} bytes of shared memory; a block of "
                f"{target.arch} has {most_shared_bytes}"
            )
        if kernel.threads > _MOST_THREADS:
            return f"has {kernel.threads} threads in a block; {target.arch} has {_MOST_THREADS}"
        if _registers(kernel) > _REGISTERS:
            return (
                f"takes {_registers(kernel)} registers for a block of {kernel.threads} threads; "
                f"{target.arch} has {_REGISTERS}"
            )
    return None


def _registers(kernel: Resources) -> int:
    warps = -(-kernel.threads // _WARP)
    return warps * -(-kernel.registers * _WARP // _PIECE) * _PIECE
