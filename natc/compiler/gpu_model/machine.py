"""Executes the machine code of a block of threads, on tensors of zeros, and counts its work.

Integers, predicates and addresses are exact. Numbers loaded from memory are 0, so that products
of matrices add nothing: control flow must not depend on the values of tensors, and in natc's
kernels it does so only where numbers are not finite. All threads of the block advance together.
Where they part, those at the lowest address go first, so they meet again where branches meet.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from natc.compiler.gpu_model.disassembly import INSTRUCTION_BYTES, Instruction
from natc.errors import ModelError

WARP = 32
_STACK_TOP = 1 << 16
_LOCAL_BYTES = 1 << 13
# Where a kernel's parameters begin in constant bank 0 (`EIATTR_PARAM_CBANK` of its cubin), by the
# first compute capability for which they do.
_PARAMETERS = ((100, 0x380), (90, 0x210), (70, 0x160))
_MOST_STEPS = 2_000_000

U32 = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]


def parameters_at(compute_capability: tuple[int, int]) -> int:
    """Return where a kernel's parameters begin in constant bank 0."""
    major, minor = compute_capability
    return next(at for first, at in _PARAMETERS if 10 * major + minor >= first)


@dataclass(frozen=True)
class Launch:
    """A block's inputs: parameters as bytes, sizes of grid and block, its place in the grid."""

    parameters: bytes
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    place: tuple[int, int, int] = (0, 0, 0)


@dataclass
class Memory:
    """Accesses of one instruction: requests of warps, and the bytes, sectors and lines they touch.

    wavefronts: the passes through the 128 bytes that the L1 cache or shared memory moves a clock.
    """

    requests: int = 0
    sectors: int = 0
    lines: int = 0
    wavefronts: int = 0


@dataclass
class Execution:
    """The work of a block. warps: how many warps issued each instruction, by its address.

    trace: the addresses that its first warp issued, in order. sectors: the distinct 32-byte
    sectors of global memory that were read and written.
    """

    warps: dict[int, int] = field(default_factory=dict)
    memory: dict[int, Memory] = field(default_factory=dict)
    trace: list[int] = field(default_factory=list)
    read_sectors: int = 0
    written_sectors: int = 0
    local_bytes: int = 0


class BlockState:
    """The state of a block: registers, predicates, memory and counts."""

    def __init__(self, code: Sequence[Instruction], launch: Launch, capability: int) -> None:
        from natc.compiler.gpu_model.semantics import HANDLERS

        threads = int(np.prod(launch.block))
        self.threads = -(-threads // WARP) * WARP
        self.launch = launch
        self.code = {each.pc: each for each in code}
        self.registers: U32 = np.zeros((256, self.threads), np.uint32)
        self.uniform: U32 = np.zeros((256, self.threads), np.uint32)
        self.predicates: Mask = np.zeros((8, self.threads), np.bool_)
        self.uniform_predicates: Mask = np.zeros((8, self.threads), np.bool_)
        self.predicates[7] = self.uniform_predicates[7] = True
        self.local: U32 = np.zeros((self.threads, _LOCAL_BYTES // 4), np.uint32)
        self.shared: U32 = np.zeros(1 << 16, np.uint32)
        index = np.arange(self.threads, dtype=np.uint32)
        x, y = np.uint32(launch.block[0]), np.uint32(launch.block[1])
        self.thread = (index % x, index // x % y, index // (x * y))
        self.lane = index % np.uint32(WARP)
        self.parameters = parameters_at(divmod(capability, 10))
        self.constants = self._constants()
        self.pc = np.full(self.threads, min(self.code), np.int64)
        # The address of the next instruction of all threads, or None if threads differ.
        self._together: int | None = None
        self.alive: Mask = np.asarray(index < threads)
        self._warps: Mask = np.asarray(self.alive.reshape(-1, WARP).any(1))
        self.execution = Execution()
        self._read: list[npt.NDArray[np.int64]] = []
        self._written: list[npt.NDArray[np.int64]] = []
        self._handlers: Mapping[str, Callable[..., int | npt.NDArray[np.int64] | None]] = HANDLERS
        self.fixed: dict[Hashable, U32] = {}

    def _constants(self) -> U32:
        bank = np.full(2048, _STACK_TOP, np.uint32)
        bank[:6] = (*self.launch.block, *self.launch.grid)
        data = np.frombuffer(
            self.launch.parameters.ljust(-(-len(self.launch.parameters) // 4) * 4, b"\0"),
            np.uint32,
        )
        start = self.parameters // 4
        bank[start : start + len(data)] = data
        return bank

    def run(self) -> Execution:
        """Execute the block to its end; raise ModelError for code that the model does not know."""
        for _ in range(_MOST_STEPS):
            if self._together is not None:
                self._step(self._together, self.alive)
                continue
            pcs = self.pc[self.alive]
            if not len(pcs):
                break
            pc = int(pcs.min())
            if int(pcs.max()) == pc:
                self._together = pc
            else:
                self._step(pc, self.alive & (self.pc == pc))
        else:
            raise ModelError(
                f"the block did not end within {_MOST_STEPS} instructions: a loop of its code "
                "depends on numbers that the model does not know."
            )
        self.execution.read_sectors = _distinct(self._read)
        self.execution.written_sectors = _distinct(self._written)
        return self.execution

    def _step(self, pc: int, active: Mask) -> None:
        instruction = self.code.get(pc)
        if instruction is None:
            raise ModelError(f"the code jumps to {pc:#x}, where there is no instruction.")
        warps: Mask = self._warps
        if self._together is None:
            warps = np.asarray(active.reshape(-1, WARP).any(1))
        if warps[0]:
            self.execution.trace.append(pc)
        counts = self.execution.warps
        counts[pc] = counts.get(pc, 0) + int(np.count_nonzero(warps))
        mask = active
        if instruction.guard:
            mask = np.asarray(active & self.guard(instruction.guard))
        handler = self._handlers.get(instruction.name)
        if handler is None:
            raise ModelError(
                f"instruction {instruction.opcode} is not known to the model, so it cannot "
                "execute this kernel."
            )
        target = handler(self, instruction, mask)
        following = pc + INSTRUCTION_BYTES
        if self._together is None:
            self.pc[active] = following
            if target is not None:
                self.pc[mask] = target
        elif target is None and instruction.name != "EXIT":
            self._together = following
        else:
            self._together = None
            self.pc[active] = following
            if target is not None:
                self.pc[mask] = target
        if instruction.name == "EXIT":
            self._warps = np.asarray(self.alive.reshape(-1, WARP).any(1))

    def guard(self, text: str) -> Mask:
        """Return the value of a predicate such as `!P0`, `UP1` or `PT` in each thread."""
        name = text.removeprefix("!")
        file = self.uniform_predicates if name.startswith("U") else self.predicates
        number = name.removeprefix("U")[1:]
        value = file[7 if number == "T" else int(number)]
        return np.asarray(~value) if text.startswith("!") else value

    def count_access(
        self, pc: int, addresses: npt.NDArray[np.int64], mask: Mask, size: int, kind: str
    ) -> None:
        """Count an access of `size` bytes by each thread; kind: global, local or shared."""
        counts = self.execution.memory.setdefault(pc, Memory())
        grid, lanes = addresses.reshape(-1, WARP), mask.reshape(-1, WARP)
        if kind == "local":
            # Each lane's word lies beside the words of other lanes at the same address.
            grid = (grid // 4) * 4 * WARP + (np.arange(WARP) * size)
        counts.requests += int(lanes.any(1).sum())
        counts.sectors += int(_distinct_rows(grid >> 5, lanes).sum())
        counts.lines += int(_distinct_rows(grid >> 7, lanes).sum())
        counts.wavefronts += int(_wavefronts(grid, lanes, size, kind).sum())
        if kind == "global":
            where = (
                self._written
                if self.code[pc].name.startswith(("ST", "RED", "ATOM"))
                else self._read
            )
            where.append(np.unique(addresses[mask] >> 5))


def _distinct(parts: list[npt.NDArray[np.int64]]) -> int:
    return len(np.unique(np.concatenate(parts))) if parts else 0


def _distinct_rows(keys: npt.NDArray[np.int64], lanes: Mask) -> npt.NDArray[np.int64]:
    """Return the number of distinct keys of each row, where `lanes` holds."""
    ordered = np.sort(np.where(lanes, keys, -1), axis=1)
    return (ordered[:, 1:] != ordered[:, :-1]).sum(1) + (ordered[:, 0] != -1)


def _wavefronts(
    grid: npt.NDArray[np.int64], lanes: Mask, size: int, kind: str
) -> npt.NDArray[np.int64]:
    """Return the passes of each group of lanes that moves up to 128 bytes.

    In shared memory a group takes as many passes as the most distinct words that one bank has to
    give; in the L1 cache, as many as the lines that it touches.
    """
    group = min(WARP, WARP * 4 // size)
    part, active = grid.reshape(-1, group), lanes.reshape(-1, group)
    if kind != "shared":
        return _distinct_rows(part >> 7, active)
    count = max(1, size // 4)
    words = (part[:, :, None] // 4 + np.arange(count)).reshape(len(part), -1)
    return _most_in_a_bank(words, np.repeat(active, count, axis=1))


def _most_in_a_bank(words: npt.NDArray[np.int64], lanes: Mask) -> npt.NDArray[np.int64]:
    counts = np.zeros(len(words), np.int64)
    for row, (line, active) in enumerate(zip(words, lanes)):
        distinct = np.unique(line[active])
        if len(distinct):
            counts[row] = np.bincount(distinct % 32).max()
    return counts
