"""The work of a launch: what its blocks execute and access, counted without a GPU."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from natc.compiler.gpu_model.architectures import Architecture, Latencies
from natc.compiler.gpu_model.classes import class_of
from natc.compiler.gpu_model.disassembly import INSTRUCTION_BYTES, Instruction
from natc.compiler.gpu_model.machine import WARP, BlockState, Execution, Launch

# Blocks are alike if they issue the same number of instructions up to this share.
_ALIKE = 0.02
# An axis of a grid that has more blocks is an axis of batches and heads, whose blocks are alike.
_MOST_TILES = 64
# A latency that is this many clocks longer shows how many of it are in a chain.
_LONGER = 100.0


@dataclass(frozen=True)
class LaunchWork:
    """A launch: its blocks, and the average work of a block.

    registers: of a thread; shared_bytes: of a block. counts: instructions of warps by class.
    requests, sectors, wavefronts: of warps' accesses to the L1 cache and shared memory (see
    `machine.Memory`); local_wavefronts: those to a thread's own memory; local_bytes: the local
    memory of the block. read_sectors, written_sectors: the distinct sectors of 32 bytes of
    global memory. chain: clocks of a warp that has the multiprocessor for itself and finds
    everything in L1. waits: how many latencies of each kind are in the chain, one after another.
    code_bytes: the machine code that is executed.
    """

    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    counts: Mapping[str, float]
    requests: float
    sectors: float
    wavefronts: float
    local_wavefronts: float
    local_bytes: float
    read_sectors: float
    written_sectors: float
    chain: float
    waits: Mapping[str, float]
    code_bytes: float
    bytes: float


def count(
    code: Sequence[Instruction],
    launch: Launch,
    capability: int,
    latencies: Latencies,
    *,
    registers: int,
    shared_bytes: int,
    local_bytes: int,
    tensor_bytes: float,
    kind_of: Callable[[Instruction], str] = class_of,
) -> LaunchWork:
    """Execute one block of each kind of a launch and return the work of an average block.

    launch: its place is not used. local_bytes: of a thread. tensor_bytes: all tensors, read or
    written once. kind_of: returns the kind under which an instruction is counted; a time is
    predicted from their classes. Raises ModelError.
    """
    executions = _executions(code, launch, capability)
    total = sum(number for _, number in executions)
    by_pc = {each.pc: each for each in code}
    counts: dict[str, float] = defaultdict(float)
    sums: dict[str, float] = defaultdict(float)
    for execution, number in executions:
        share = number / total
        for pc, warps in execution.warps.items():
            counts[kind_of(by_pc[pc])] += warps * share
        for pc, memory in execution.memory.items():
            sums["requests"] += memory.requests * share
            sums["sectors"] += memory.sectors * share
            is_local = by_pc[pc].name in ("LDL", "STL")
            sums["local" if is_local else "wavefronts"] += memory.wavefronts * share
        sums["read"] += execution.read_sectors * share
        sums["written"] += execution.written_sectors * share
    longest = max((execution.trace for execution, _ in executions), key=len)
    alone = chain(by_pc, longest, latencies)
    threads = math.prod(launch.block)
    return LaunchWork(
        blocks=math.prod(launch.grid),
        threads=threads,
        registers=registers,
        shared_bytes=shared_bytes,
        counts=dict(counts),
        requests=sums["requests"],
        sectors=sums["sectors"],
        wavefronts=sums["wavefronts"],
        local_wavefronts=sums["local"],
        local_bytes=float(local_bytes * threads),
        read_sectors=sums["read"],
        written_sectors=sums["written"],
        chain=alone,
        waits={
            name: (chain(by_pc, longest, slower) - alone) / _LONGER
            for name, slower in latencies.each_longer(_LONGER)
        },
        code_bytes=float(
            INSTRUCTION_BYTES * len({pc for each, _ in executions for pc in each.warps})
        ),
        bytes=tensor_bytes,
    )


def _executions(
    code: Sequence[Instruction], launch: Launch, capability: int
) -> list[tuple[Execution, int]]:
    """Return the work of a block of each kind, and the number of such blocks.

    On each axis of the grid the last block may be partly outside of the map. If the block that is
    last on all axes issues and accesses as much as one in the middle, all blocks are alike.
    """

    def run(place: Sequence[int]) -> Execution:
        x, y, z = place
        with np.errstate(all="ignore"):
            return BlockState(code, replace(launch, place=(x, y, z)), capability).run()

    middle = run([(size - 1) // 2 for size in launch.grid])
    corner = run([size - 1 for size in launch.grid])
    if all(abs(a - b) <= _ALIKE * a for a, b in zip(_amounts(middle), _amounts(corner))):
        return [(middle, math.prod(launch.grid))]
    kinds = [
        [((size - 1) // 2, size - 1), (size - 1, 1)]
        if 1 < size <= _MOST_TILES
        else [((size - 1) // 2, size)]
        for size in launch.grid
    ]
    return [
        (run([place for place, _ in kind]), math.prod(weight for _, weight in kind))
        for kind in itertools.product(*kinds)
    ]


def _amounts(execution: Execution) -> tuple[int, int]:
    """Return how many instructions a block issued, and the passes of its accesses."""
    passes = sum(memory.wavefronts for memory in execution.memory.values())
    return sum(execution.warps.values()), passes


def chain(code: Mapping[int, Instruction], trace: Sequence[int], latencies: Latencies) -> float:
    """Return the clocks of a warp that runs alone: it waits where the compiler says so.

    Instructions of fixed latency are followed by as many clocks as the compiler wrote; the others
    set one of six barriers, on which a later instruction waits.
    """
    ends = [0.0] * 8
    clock = 0.0
    for pc in trace:
        instruction = code[pc]
        for barrier in instruction.barriers_awaited:
            clock = max(clock, ends[barrier])
        for barrier in instruction.barriers_set:
            ends[barrier] = max(ends[barrier], clock + latencies.of(instruction))
        clock += max(1, instruction.stall)
    return clock


def resident_blocks(work: LaunchWork, chip: Architecture) -> int:
    """Return how many blocks of a launch a multiprocessor holds at once.

    CUDA programming guide, "Hardware multithreading" and "Technical Specifications".
    """
    warps = -(-work.threads // WARP)
    # A warp gets registers in multiples of 256.
    registers = -(-work.registers * WARP // 256) * 256 * warps
    limits = [chip.blocks, chip.warps // warps, chip.registers // registers]
    if work.shared_bytes:
        limits.append(chip.shared_bytes // work.shared_bytes)
    return max(1, min(limits))
