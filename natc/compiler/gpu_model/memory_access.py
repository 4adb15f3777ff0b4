"""What loads and stores do to the state of a block: global memory holds zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from natc.compiler.gpu_model.disassembly import Instruction
from natc.compiler.gpu_model.machine import BlockState, Mask
from natc.compiler.gpu_model.operands import address, integer, write
from natc.errors import ModelError

_SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "16": 2, "64": 8, "128": 16}


def _size(i: Instruction) -> int:
    return next((_SIZES[word] for word in i.modifiers if word in _SIZES), 4)


def _register(text: str, offset: int) -> str:
    name = text.split(".")[0]
    return name if name.endswith("Z") or not offset else f"R{int(name[1:]) + offset}"


def _load_global(m: BlockState, i: Instruction, mask: Mask) -> None:
    target, place = i.operands[0], i.operands[1]
    size = _size(i)
    m.count_access(i.pc, address(m, place), mask, size, "global")
    for word in range(max(1, size // 4)):
        write(m, target, np.zeros(m.threads, np.uint32), mask, word)


def _store_global(m: BlockState, i: Instruction, mask: Mask) -> None:
    m.count_access(i.pc, address(m, i.operands[0]), mask, _size(i), "global")


def _words(
    m: BlockState, i: Instruction, mask: Mask, place: str, kind: str
) -> tuple[np.ndarray, int]:
    """Return the index of the first word that each thread accesses, and the number of words."""
    at, size = address(m, place), _size(i)
    m.count_access(i.pc, at, mask, size, kind)
    if kind == "local":
        at = at & 0xFFFFFF
        at = at - ((1 << 16) - m.local.shape[1] * 4)
    limit = m.local.shape[1] if kind == "local" else len(m.shared)
    words = np.where(mask, at, 0) // 4
    if mask.any() and not (words.min() >= 0 and words.max() + max(1, size // 4) <= limit):
        raise ModelError(f"{i.opcode} at {i.pc:#x} accesses {kind} memory that does not exist.")
    return words, max(1, size // 4)


def _load_local(m: BlockState, i: Instruction, mask: Mask) -> None:
    first, count = _words(m, i, mask, i.operands[1], "local")
    rows = np.arange(m.threads)
    for word in range(count):
        write(m, i.operands[0], m.local[rows, first + word], mask, word)


def _store_local(m: BlockState, i: Instruction, mask: Mask) -> None:
    first, count = _words(m, i, mask, i.operands[0], "local")
    rows = np.arange(m.threads)[mask]
    for word in range(count):
        m.local[rows, first[mask] + word] = integer(m, _register(i.operands[1], word))[mask]


def _load_shared(m: BlockState, i: Instruction, mask: Mask) -> None:
    first, count = _words(m, i, mask, i.operands[1], "shared")
    for word in range(count):
        write(m, i.operands[0], m.shared[first + word], mask, word)


def _store_shared(m: BlockState, i: Instruction, mask: Mask) -> None:
    first, count = _words(m, i, mask, i.operands[0], "shared")
    for word in range(count):
        m.shared[first[mask] + word] = integer(m, _register(i.operands[1], word))[mask]


def _load_matrix(m: BlockState, i: Instruction, mask: Mask) -> None:
    """LDSM: each lane names a row of 16 bytes; the loaded numbers are zeros, as in all tensors."""
    number = next((int(word) for word in i.modifiers if word in ("2", "4")), 1)
    rows = mask & (m.lane < 8 * number)
    m.count_access(i.pc, address(m, i.operands[1]), rows, 16, "shared")
    for word in range(number):
        write(m, i.operands[0], np.zeros(m.threads, np.uint32), mask, word)


def _copy_to_shared(m: BlockState, i: Instruction, mask: Mask) -> None:
    """LDGSTS: from global to shared memory."""
    _, place = i.operands[:2]
    m.count_access(i.pc, address(m, place), mask, _size(i), "global")


MEMORY: dict[str, Callable[[BlockState, Instruction, Mask], None]] = {
    "LDG": _load_global, "LD": _load_global, "STG": _store_global, "ST": _store_global,
    "RED": _store_global, "REDG": _store_global, "LDL": _load_local, "STL": _store_local,
    "LDS": _load_shared, "STS": _store_shared, "LDSM": _load_matrix, "LDGSTS": _copy_to_shared,
}  # fmt: skip
