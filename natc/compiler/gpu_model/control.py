"""What predicates, votes, shuffles and branches do to the state of a block."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from natc.compiler.gpu_model.disassembly import Instruction
from natc.compiler.gpu_model.machine import WARP, BlockState, Mask
from natc.compiler.gpu_model.operands import integer, is_predicate, write, write_predicate

Handler: TypeAlias = Callable[
    [BlockState, Instruction, Mask], "int | npt.NDArray[np.int64] | None"
]


def _predicate_logic(m: BlockState, i: Instruction, mask: Mask) -> None:
    """PLOP3: any function of three predicates, by its table."""
    first, second, a, b, c, table, second_table = i.operands
    values = [m.guard(text) for text in (a, b, c)]
    index = values[0] * 4 + values[1] * 2 + values[2]
    for target, lut in ((first, int(table, 16)), (second, int(second_table, 16))):
        write_predicate(m, target, (lut >> index & 1).astype(np.bool_), mask)


def _pack_predicates(m: BlockState, i: Instruction, mask: Mask) -> None:
    """P2R: predicates as the bits of a register."""
    target, _, source, which = i.operands
    bits = np.zeros(m.threads, np.uint32)
    for number in range(7):
        bits |= m.predicates[number].astype(np.uint32) << np.uint32(number)
    shift = next((8 * int(s[1]) for s in i.modifiers if s[0] == "B"), 0)
    keep = np.uint32(int(which, 16))
    old = integer(m, source)
    result = (old & ~(keep << np.uint32(shift))) | (bits & keep) << np.uint32(shift)
    write(m, target, result, mask)


def _unpack_predicates(m: BlockState, i: Instruction, mask: Mask) -> None:
    """R2P: the bits of a register as predicates."""
    _, source, which = i.operands
    suffix = re.search(r"\.B(\d)", source)
    bits = integer(m, source) >> np.uint32(8 * int(suffix[1]) if suffix else 0)
    for number in range(7):
        if int(which, 16) >> number & 1:
            write_predicate(
                m, f"P{number}", (bits >> np.uint32(number) & 1).astype(np.bool_), mask
            )


def _vote(m: BlockState, i: Instruction, mask: Mask) -> None:
    """VOTE: whether a predicate holds in any or all active lanes of a warp; the lanes as bits."""
    *targets, source = i.operands
    lanes, active = (m.guard(source) & mask).reshape(-1, WARP), mask.reshape(-1, WARP)
    ballot = (lanes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
    result = (lanes | ~active).all(1) if "ALL" in i.modifiers else lanes.any(1)
    for target in targets:
        if is_predicate(target):
            write_predicate(m, target, np.repeat(result, WARP), mask)
        else:
            write(m, target, np.repeat(ballot, WARP), mask)


def _shuffle(m: BlockState, i: Instruction, mask: Mask) -> None:
    """SHFL: each lane reads a register of another (PTX ISA, shfl.sync)."""
    valid, target, source, b, c = i.operands
    lane = m.lane.astype(np.int64)
    by, clamp = integer(m, b).astype(np.int64) & 31, integer(m, c).astype(np.int64)
    segment = clamp >> 8 & 31
    most = (lane & segment) | (clamp & 31 & ~segment)
    least = lane & segment
    kind = i.modifiers[0]
    if kind == "IDX":
        from_lane = least | (by & ~segment)
        inside = from_lane <= most
    elif kind == "UP":
        from_lane = lane - by
        inside = from_lane >= most
    elif kind == "DOWN":
        from_lane = lane + by
        inside = from_lane <= most
    else:
        from_lane = lane ^ by
        inside = from_lane <= most
    from_lane = np.where(inside, from_lane, lane) & 31
    first = np.arange(m.threads) // WARP * WARP
    write(m, target, integer(m, source)[first + from_lane], mask)
    write_predicate(m, valid, inside, mask)


def _branch(m: BlockState, i: Instruction, mask: Mask) -> int | None:
    """BRA: further predicates stand before the address. `.DIV` is for lanes that have parted."""
    if "DIV" in i.modifiers or "CONV" in i.modifiers:
        return None
    *conditions, place = i.operands
    for text in conditions:
        if is_predicate(text):
            mask &= m.guard(text)
    return int(place.split()[-1].strip("`()"), 16)


def _return(m: BlockState, i: Instruction, mask: Mask) -> npt.NDArray[np.int64]:
    register = i.operands[-1].split()[0]
    return integer(m, register).astype(np.int64)[mask]


def _exit(m: BlockState, i: Instruction, mask: Mask) -> None:
    m.alive &= ~mask


def _nothing(m: BlockState, i: Instruction, mask: Mask) -> None:
    """Barriers and hints: all threads of a block advance together."""


# Barriers, and hints for the scheduler.
_IGNORED = (
    "BSSY", "BSYNC", "BREAK", "BMOV", "NOP", "YIELD", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "BAR",
    "ERRBAR", "MEMBAR", "CCTL",
)  # fmt: skip
CONTROL: dict[str, Handler] = {
    "PLOP3": _predicate_logic, "UPLOP3": _predicate_logic, "P2R": _pack_predicates,
    "R2P": _unpack_predicates, "VOTE": _vote, "VOTEU": _vote, "SHFL": _shuffle,
    "BRA": _branch, "CALL": _branch, "RET": _return, "EXIT": _exit,
    **dict.fromkeys(_IGNORED, _nothing),
}  # fmt: skip
