"""Executes each instruction on the state of a block (`natc.compiler.gpu_model.machine`).

A handler returns the address at which the active threads go on, or None for the next
instruction. NVIDIA documents the names of instructions (CUDA Binary Utilities, "Instruction Set
Reference"), not their operands; `tests/pure/test_gpu_model.py` checks them.
"""

from __future__ import annotations

import numpy as np

from natc.compiler.gpu_model.control import CONTROL, Handler
from natc.compiler.gpu_model.disassembly import Instruction
from natc.compiler.gpu_model.floating_point import FLOATING
from natc.compiler.gpu_model.machine import BlockState, Mask
from natc.compiler.gpu_model.memory_access import MEMORY
from natc.compiler.gpu_model.operands import (
    COMPARISONS,
    integer,
    is_predicate,
    signed,
    wide,
    write,
    write_comparison,
    write_predicate,
    write_wide,
)
from natc.errors import ModelError

_LOW = np.uint64(0xFFFFFFFF)


def _add(m: BlockState, i: Instruction, mask: Mask) -> None:
    """IADD3: the sum of three numbers, with carries in (`.X`) and out."""
    target, *operands = i.operands
    out = []
    while operands and is_predicate(operands[0]):
        out.append(operands.pop(0))
    into = [each for each in operands if is_predicate(each)]
    sources = [each for each in operands if not is_predicate(each)]
    if "64" in i.modifiers:
        total = np.zeros(m.threads, np.uint64)
        for text in sources:
            total = total + wide(m, text)
        write_wide(m, target, total, mask)
        return
    total = np.zeros(m.threads, np.uint64)
    for text in sources:
        if text.startswith("-"):
            total += (~integer(m, text[1:])).astype(np.uint64) + np.uint64(1)
        else:
            total += integer(m, text).astype(np.uint64)
    if "X" in i.modifiers:
        for text in into:
            total += m.guard(text)
    write(m, target, (total & _LOW).astype(np.uint32), mask)
    for text in out[:1]:
        write_predicate(m, text, (total >> np.uint64(32)) > 0, mask)


def _multiply_add(m: BlockState, i: Instruction, mask: Mask) -> None:
    """IMAD: a * b + c, its low or high half, or all 64 bits."""
    target, *operands = i.operands
    out = []
    while is_predicate(operands[0]):
        out.append(operands.pop(0))
    a, b, c, *into = operands
    unsigned = "U32" in i.modifiers
    if "WIDE" in i.modifiers or "HI" in i.modifiers:
        read = integer if unsigned else signed
        product = read(m, a).astype(np.int64).astype(np.uint64) * read(m, b).astype(
            np.int64
        ).astype(np.uint64)
        addend = wide(m, c)
        total = product + addend
        if "HI" in i.modifiers:
            high = total.view(np.int64) >> 32 if not unsigned else total >> np.uint64(32)
            write(
                m, target, (high.astype(np.int64).astype(np.uint64) & _LOW).astype(np.uint32), mask
            )
        else:
            write_wide(m, target, total, mask)
        for text in out[:1]:
            write_predicate(m, text, total < addend, mask)
        return
    total32 = integer(m, a) * integer(m, b) + integer(m, c)
    if "X" in i.modifiers:
        for text in into[:1]:
            total32 = total32 + m.guard(text).astype(np.uint32)
    write(m, target, total32, mask)


def _lea(m: BlockState, i: Instruction, mask: Mask) -> None:
    """LEA: (a << shift) + b, or with `.HI` the bits of a that this shifts out."""
    target, *operands = i.operands
    out = operands.pop(0) if is_predicate(operands[0]) else None
    into = operands.pop() if is_predicate(operands[-1]) else None
    a, b = operands[0], operands[1]
    shift = np.uint64(int(operands[-1], 16))
    if "HI" in i.modifiers:
        if "SX32" in i.modifiers:
            whole = signed(m, a).astype(np.uint64)
        else:
            whole = integer(m, a).astype(np.uint64) | integer(m, operands[2]).astype(
                np.uint64
            ) << np.uint64(32)
        part = (
            (whole << shift) >> np.uint64(32)
            if "SX32" not in i.modifiers
            else ((whole.view(np.int64) >> np.int64(32 - int(shift))).view(np.uint64) & _LOW)
        )
    else:
        part = (integer(m, a).astype(np.uint64) << shift) & _LOW
    total = part + integer(m, b).astype(np.uint64)
    if into is not None and "X" in i.modifiers:
        total = total + m.guard(into)
    write(m, target, (total & _LOW).astype(np.uint32), mask)
    if out is not None:
        write_predicate(m, out, total > _LOW, mask)


def _shift(m: BlockState, i: Instruction, mask: Mask) -> None:
    """SHF: a shift of the 64 bits (c, a); the result is the low or the high half."""
    target, a, b, c = i.operands
    low, high = integer(m, a).astype(np.uint64), integer(m, c).astype(np.uint64) << np.uint64(32)
    by = np.minimum(integer(m, b), 63).astype(np.uint64)
    whole = high | low
    if "L" in i.modifiers:
        result = whole << by
    elif "S32" in i.modifiers or "S64" in i.modifiers:
        result = (whole.view(np.int64) >> by.view(np.int64)).view(np.uint64)
    else:
        result = whole >> by
    if "HI" in i.modifiers:
        result = result >> np.uint64(32)
    write(m, target, (result & _LOW).astype(np.uint32), mask)


def _logic(m: BlockState, i: Instruction, mask: Mask) -> None:
    """LOP3: any function of three bits, by its table."""
    operands = list(i.operands)
    out = operands.pop(0) if is_predicate(operands[0]) else None
    target, a, b, c, table, *_ = operands
    words, lut = [integer(m, text) for text in (a, b, c)], int(table, 16)
    result = np.zeros(m.threads, np.uint32)
    for case in range(8):
        if lut >> case & 1:
            bits = [case >> 2 & 1, case >> 1 & 1, case & 1]
            parts = [w if bit else ~w for w, bit in zip(words, bits)]
            result |= parts[0] & parts[1] & parts[2]
    write(m, target, result, mask)
    if out is not None:
        write_predicate(m, out, result != 0, mask)


def _compare(m: BlockState, i: Instruction, mask: Mask) -> None:
    """ISETP: a comparison, combined with a predicate."""
    _, _, a, b, _, *extended = i.operands
    read = integer if "U32" in i.modifiers else signed
    x, y = read(m, a), read(m, b)
    name = i.modifiers[0]
    result = COMPARISONS[name](x, y)
    if "EX" in i.modifiers:
        lower = m.guard(extended[0])
        strict = {"LE": "LT", "GE": "GT"}.get(name, name)
        if name == "NE":
            result = result | lower
        elif name == "EQ":
            result = result & lower
        else:
            result = COMPARISONS[strict](x, y) | ((x == y) & lower)
    write_comparison(m, i, result, mask)


def _select(m: BlockState, i: Instruction, mask: Mask) -> None:
    target, a, b, which = i.operands
    write(m, target, np.where(m.guard(which), integer(m, a), integer(m, b)), mask)


def _min_or_max(m: BlockState, i: Instruction, mask: Mask) -> None:
    """IMNMX, VIMNMX: the smaller of two numbers if a predicate holds, else the larger.

    VIADDMNMX adds two numbers first.
    """
    target, *sources, which = i.operands
    if len(sources) > 2 and is_predicate(sources[-1]):
        sources.pop()
    read = integer if "U32" in i.modifiers else signed
    numbers = [read(m, text).astype(np.int64) for text in sources]
    if i.name.startswith("VIADD"):
        total = numbers[0] + numbers[1]
        numbers = [total.astype(np.uint32).view(np.int32).astype(np.int64), *numbers[2:]]
    smallest, largest = np.minimum.reduce(numbers), np.maximum.reduce(numbers)
    result = np.asarray(np.where(m.guard(which), smallest, largest))
    if "RELU" in i.modifiers:
        result = np.maximum(result, 0)
    write(m, target, result.astype(np.uint32), mask)


def _move(m: BlockState, i: Instruction, mask: Mask) -> None:
    if "64" in i.modifiers:
        write_wide(m, i.operands[0], wide(m, i.operands[1]), mask)
    else:
        write(m, i.operands[0], integer(m, i.operands[1]), mask)


def _clear(m: BlockState, i: Instruction, mask: Mask) -> None:
    """CS2R: natc's kernels read no clocks, only zeros."""
    write_wide(m, i.operands[0], np.zeros(m.threads, np.uint64), mask)


def _special(m: BlockState, i: Instruction, mask: Mask) -> None:
    """S2R: the numbers of the thread and the block; a block is the only one of its cluster."""
    target, name = i.operands
    kind, _, axis = name.removeprefix("SR_").partition(".")
    if kind == "LANEID":
        value = m.lane
    elif kind == "CgaCtaId":
        value = np.zeros(m.threads, np.uint32)
    elif kind in ("TID", "CTAID"):
        number = "XYZ".index(axis)
        value = (
            m.thread[number]
            if kind == "TID"
            else np.full(m.threads, m.launch.place[number], np.uint32)
        )
    else:
        raise ModelError(f"special register {name} is not known to the model.")
    write(m, target, value, mask)


def _permute(m: BlockState, i: Instruction, mask: Mask) -> None:
    """PRMT: each byte of the result is one of eight bytes."""
    target, a, b, c = i.operands
    whole = integer(m, a).astype(np.uint64) | integer(m, c).astype(np.uint64) << np.uint64(32)
    selector, result = integer(m, b), np.zeros(m.threads, np.uint32)
    for byte in range(4):
        nibble = selector >> np.uint32(4 * byte) & np.uint32(15)
        value = (whole >> (8 * (nibble & np.uint32(7))).astype(np.uint64) & np.uint64(255)).astype(
            np.uint32
        )
        sign = np.where(value & np.uint32(128), np.uint32(255), np.uint32(0))
        result |= np.where(nibble & np.uint32(8), sign, value) << np.uint32(8 * byte)
    write(m, target, result, mask)


def _absolute(m: BlockState, i: Instruction, mask: Mask) -> None:
    write(m, i.operands[0], np.abs(signed(m, i.operands[1])).astype(np.uint32), mask)


def _count_bits(m: BlockState, i: Instruction, mask: Mask) -> None:
    write(m, i.operands[0], np.bitwise_count(integer(m, i.operands[1])).astype(np.uint32), mask)


def _find_leading_one(m: BlockState, i: Instruction, mask: Mask) -> None:
    value = integer(m, i.operands[-1]).astype(np.float64)
    with np.errstate(divide="ignore"):
        position = np.where(value > 0, np.floor(np.log2(np.maximum(value, 1))), 0xFFFFFFFF)
    write(m, i.operands[0], position.astype(np.uint32), mask)


_INTEGER: dict[str, Handler] = {
    "IADD3": _add, "UIADD3": _add, "IADD": _add, "UIADD": _add, "VIADD": _add,
    "IMAD": _multiply_add, "UIMAD": _multiply_add, "LEA": _lea, "ULEA": _lea,
    "IMAD.MOV": _multiply_add, "SHF": _shift, "USHF": _shift, "LOP3": _logic, "ULOP3": _logic,
    "ISETP": _compare, "UISETP": _compare, "SEL": _select, "USEL": _select,
    "IMNMX": _min_or_max, "VIMNMX": _min_or_max, "VIADDMNMX": _min_or_max, "VIMNMX3": _min_or_max,
    "UVIADDMNMX": _min_or_max, "UVIMNMX": _min_or_max, "UVIADD": _add,
    "MOV": _move, "UMOV": _move, "R2UR": _move, "CS2R": _clear, "S2R": _special, "S2UR": _special,
    "LDC": _move, "ULDC": _move, "LDCU": _move,
    "PRMT": _permute, "UPRMT": _permute, "IABS": _absolute, "POPC": _count_bits,
    "UPOPC": _count_bits, "FLO": _find_leading_one, "UFLO": _find_leading_one,
}  # fmt: skip
HANDLERS: dict[str, Handler] = {**_INTEGER, **CONTROL, **FLOATING, **MEMORY}
