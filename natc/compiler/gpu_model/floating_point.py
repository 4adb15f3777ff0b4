"""What instructions on floating-point numbers do to the state of a block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from natc.compiler.gpu_model.disassembly import Instruction
from natc.compiler.gpu_model.machine import BlockState, Mask
from natc.compiler.gpu_model.operands import (
    COMPARISONS,
    ZERO,
    Floats,
    floating,
    integer,
    is_predicate,
    operand,
    signed,
    write,
    write_comparison,
    write_number,
    write_predicate,
)
from natc.errors import ModelError


def _add(m: BlockState, i: Instruction, mask: Mask) -> None:
    write(m, i.operands[0], floating(m, i.operands[1]) + floating(m, i.operands[2]), mask)


def _multiply(m: BlockState, i: Instruction, mask: Mask) -> None:
    write(m, i.operands[0], floating(m, i.operands[1]) * floating(m, i.operands[2]), mask)


def _multiply_add(m: BlockState, i: Instruction, mask: Mask) -> None:
    a, b, c = (floating(m, text) for text in i.operands[1:4])
    write(m, i.operands[0], a * b + c, mask)


def _min_or_max(m: BlockState, i: Instruction, mask: Mask) -> None:
    """FMNMX: the smallest number if the last predicate holds, else the largest."""
    numbers = [floating(m, text) for text in i.operands[1:] if not is_predicate(text)]
    smallest, largest = np.fmin.reduce(numbers), np.fmax.reduce(numbers)
    write(m, i.operands[0], np.asarray(np.where(m.guard(i.operands[-1]), smallest, largest)), mask)


def _select(m: BlockState, i: Instruction, mask: Mask) -> None:
    a, b = floating(m, i.operands[1]), floating(m, i.operands[2])
    write(m, i.operands[0], np.where(m.guard(i.operands[3]), a, b), mask)


def _compare(m: BlockState, i: Instruction, mask: Mask) -> None:
    """FSETP: a comparison; a trailing U in its name says that it holds for NaN, too."""
    x, y, name = floating(m, i.operands[2]), floating(m, i.operands[3]), i.modifiers[0]
    unordered = np.isnan(x) | np.isnan(y)
    if name in ("NUM", "NAN"):
        result = unordered if name == "NAN" else ~unordered
    else:
        result = COMPARISONS[name.removesuffix("U")](x, y) & ~unordered
        if name.endswith("U"):
            result |= unordered
    write_comparison(m, i, result, mask)


def _special_function(m: BlockState, i: Instruction, mask: Mask) -> None:
    x = floating(m, i.operands[1])
    functions: dict[str, Callable[[Floats], Floats]] = {
        "EX2": np.exp2, "RCP": np.reciprocal, "LG2": np.log2, "SQRT": np.sqrt,
        "RSQ": lambda value: np.reciprocal(np.sqrt(value)), "TANH": np.tanh,
    }  # fmt: skip
    if i.modifiers[0] not in functions:
        raise ModelError(f"instruction {i.opcode} is not known to the model.")
    write(m, i.operands[0], functions[i.modifiers[0]](x).astype(np.float32), mask)


def _from_integer(m: BlockState, i: Instruction, mask: Mask) -> None:
    """I2F: rounded to nearest, or up (`.RP`), as divisions of integers need it."""
    source = i.operands[1]
    exact = (integer if "U32" in i.modifiers else signed)(m, source).astype(np.float64)
    result = exact.astype(np.float32)
    if "RP" in i.modifiers:
        result = np.where(result < exact, np.nextafter(result, np.float32(np.inf)), result)
    write(m, i.operands[0], result.astype(np.float32), mask)


def _to_integer(m: BlockState, i: Instruction, mask: Mask) -> None:
    x = np.nan_to_num(floating(m, i.operands[1]).astype(np.float64))
    whole = (
        np.trunc(x)
        if "TRUNC" in i.modifiers
        else np.floor(x)
        if "FLOOR" in i.modifiers
        else np.rint(x)
    )
    low, high = (0, 2**32 - 1) if "U32" in i.modifiers else (-(2**31), 2**31 - 1)
    write(m, i.operands[0], np.clip(whole, low, high).astype(np.int64).astype(np.uint32), mask)


def _pack(m: BlockState, i: Instruction, mask: Mask) -> None:
    """F2FP: two float32 as one word of 16-bit numbers."""
    *_, upper, lower = i.operands[:3]
    words = []
    for text in (upper, lower):
        value = floating(m, text)
        if "BF16" in i.modifiers:
            words.append((value.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16))
        else:
            words.append(value.astype(np.float16).view(np.uint16).astype(np.uint32))
    write(m, i.operands[0], words[0] << np.uint32(16) | words[1], mask)


def _convert(m: BlockState, i: Instruction, mask: Mask) -> None:
    """F2F, FRND: natc's kernels convert single numbers only where they store them."""
    value = floating(m, i.operands[1])
    if i.modifiers[:2] == ("F16", "F32"):
        write(m, i.operands[0], value.astype(np.float16).view(np.uint16).astype(np.uint32), mask)
    elif i.modifiers[:2] == ("BF16", "F32"):
        write(m, i.operands[0], value.view(np.uint32) >> np.uint32(16), mask)
    else:
        write(m, i.operands[0], np.rint(value).astype(np.float32), mask)


def _packed(m: BlockState, i: Instruction, mask: Mask) -> None:
    """HADD2, HMUL2, HFMA2: on 16-bit numbers of tensors, which are 0, or a constant.

    Compilers write an integer constant as the sum of a product with RZ and two float16.
    """
    numbers = [operand(text) for text in i.operands[1:] if operand(text).kind == "number"]
    bits = np.uint32(0)
    if len(numbers) == 2 and "RZ" in i.operands[1]:
        upper, lower = (
            np.float16(-each.number if each.negated else each.number).view(np.uint16)
            for each in numbers
        )
        bits = np.uint32(int(upper) << 16 | int(lower))
    write_number(m, i.operands[0], bits, mask)


def _of_halves(m: BlockState, i: Instruction, mask: Mask) -> None:
    """HMNMX2, VHMNMX: the largest or smallest of 16-bit numbers of tensors, which are 0."""
    write_number(m, i.operands[0], np.uint32(0), mask)


def _product(m: BlockState, i: Instruction, mask: Mask) -> None:
    """HMMA: products of zeros do not change the sums."""
    target, _, _, sums = i.operands[:4]
    which = operand(sums)
    for number in range(4 if "F32" in i.modifiers else 2):
        zero = which.kind != "register" or which.place == ZERO
        values = m.registers[ZERO if zero else which.place + number]
        write(m, target, values, mask, number)


def _needs_slow_division(m: BlockState, i: Instruction, mask: Mask) -> None:
    """FCHK: no divisor is so small or large that the fast division is inexact."""
    write_predicate(m, i.operands[0], np.zeros(m.threads, np.bool_), mask)


def _two(m: BlockState, i: Instruction, mask: Mask) -> None:
    """FADD2, FMUL2, FFMA2: on pairs of float32, which are taken to be 0."""
    for number in (0, 1):
        write_number(m, i.operands[0], np.uint32(0), mask, number)


FLOATING: dict[str, Callable[[BlockState, Instruction, Mask], None]] = {
    "FADD": _add, "FMUL": _multiply, "FFMA": _multiply_add, "FMNMX": _min_or_max,
    "FMNMX3": _min_or_max, "FSEL": _select, "FSETP": _compare, "MUFU": _special_function,
    "I2F": _from_integer, "I2FP": _from_integer, "F2I": _to_integer, "F2IP": _to_integer,
    "F2FP": _pack, "F2F": _convert, "FRND": _convert, "HADD2": _packed, "HMUL2": _packed,
    "HFMA2": _packed, "HMNMX2": _of_halves, "VHMNMX": _of_halves, "HMMA": _product,
    "FCHK": _needs_slow_division,
    "UFADD": _add, "UFMUL": _multiply, "UFFMA": _multiply_add, "UFSEL": _select,
    "UFSETP": _compare, "UFMNMX": _min_or_max, "UI2F": _from_integer, "UI2FP": _from_integer,
    "UF2I": _to_integer, "UF2FP": _pack,
    "FADD2": _two, "FMUL2": _two, "FFMA2": _two,
}  # fmt: skip
