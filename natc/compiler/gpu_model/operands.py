"""Reads and writes the operands of instructions: registers, constants, numbers and addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from natc.errors import ModelError

if TYPE_CHECKING:
    from natc.compiler.gpu_model.disassembly import Instruction
    from natc.compiler.gpu_model.machine import BlockState, Mask

Bits = npt.NDArray[np.uint32]
Wide = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

ZERO = 255
# Comparisons and combinations of predicates, by the modifier that names them.
COMPARISONS: dict[str, Callable[..., Mask]] = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
    "EQ": np.equal, "NE": np.not_equal,
}  # fmt: skip
_COMBINATIONS: dict[str, Callable[..., Mask]] = {
    "AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor,
}  # fmt: skip
_OPERAND = re.compile(
    r"(?P<sign>[-~+]?)(?P<bar>\|?)(?P<what>U?RZ?\d*|c\[0x(?P<bank>\d+)\]\[(?P<at>[^\]]+)\]|"
    r"0x[0-9a-f]+|\d[\d.e+-]*|INF|QNAN|SRZ)\|?(?P<rest>[.\w]*)"
)
_ADDRESS = re.compile(r"(?:desc\[UR\d+\])?\[(?P<parts>[^\]]*)\]$")
_SPECIAL = {"INF": float("inf"), "QNAN": float("nan")}


class Operand(NamedTuple):
    """An operand: where it lies (kind, place), and how it is changed when it is read.

    kind: register, uniform, constant or number; number: the value of a number, a float if it is
    written as one.
    """

    kind: str
    place: int
    number: int | float
    negated: bool
    absolute: bool
    inverted: bool
    suffixes: tuple[str, ...]


@cache
def operand(text: str) -> Operand:
    """Parse an operand; raise ModelError if the text is no operand."""
    match = _OPERAND.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ModelError(f"operand {text!r} of an instruction is not known to the model.")
    what, sign = match["what"], match["sign"]
    kind, place = "number", 0
    number: int | float = 0
    if what.startswith(("R", "UR")):
        kind = "uniform" if what.startswith("U") else "register"
        digits = what.lstrip("UR")
        place = ZERO if digits == "Z" else int(digits)
    elif what == "SRZ":
        pass
    elif match["bank"] is not None:
        kind, at = "constant", match["at"]
        place = int(at, 16) if at.startswith("0x") and match["bank"] == "0" else -1
    elif what in _SPECIAL:
        number = _SPECIAL[what]
    elif what.startswith("0x"):
        number = int(what, 16)
    else:
        number = float(what) if re.search(r"[.e]", what) else int(what)
    return Operand(
        kind, place, number, sign == "-", bool(match["bar"]), sign == "~",
        tuple(match["rest"].split(".")[1:]),
    )  # fmt: skip


def is_predicate(text: str) -> bool:
    """Return whether an operand is a predicate, such as `!P0`, `UP1` or `PT`."""
    return re.fullmatch(r"!?U?P[T\d]", text) is not None


def _stored(m: BlockState, which: Operand, offset: int = 0) -> Bits:
    if which.kind == "register":
        return m.registers[ZERO if which.place == ZERO else which.place + offset]
    if which.kind == "uniform":
        return m.uniform[ZERO if which.place == ZERO else which.place + offset]
    key = which, offset
    if key not in m.fixed:
        m.fixed[key] = _fixed(m, which, offset)
    return m.fixed[key]


def _fixed(m: BlockState, which: Operand, offset: int) -> Bits:
    """Return a constant, or a number of the instruction, in each thread."""
    if which.kind == "constant":
        # Other banks hold addresses of variables, which natc's kernels do not have.
        value = m.constants[which.place // 4 + offset] if which.place >= 0 else 0
        return np.full(m.threads, value, np.uint32)
    if isinstance(which.number, float):
        bits = np.float32(which.number).view(np.uint32) if not offset else np.uint32(0)
        return np.full(m.threads, bits, np.uint32)
    return np.full(m.threads, which.number >> 32 * offset & 0xFFFFFFFF, np.uint32)


def integer(m: BlockState, text: str) -> Bits:
    """Return an operand of 32 bits in each thread."""
    which = operand(text)
    value = _stored(m, which)
    if which.negated:
        return np.negative(value)
    return ~value if which.inverted else value


def signed(m: BlockState, text: str) -> npt.NDArray[np.int64]:
    """Return an operand of 32 bits in each thread, as a signed number."""
    return integer(m, text).view(np.int32).astype(np.int64)


def wide(m: BlockState, text: str) -> Wide:
    """Return an operand of 64 bits in each thread: a pair of registers, or of constants."""
    which = operand(text)
    if which.kind == "number" and not isinstance(which.number, float):
        value = np.full(m.threads, which.number, np.uint64)
    else:
        high = _stored(m, which, 1).astype(np.uint64) << np.uint64(32)
        value = _stored(m, which).astype(np.uint64) | high
    return np.negative(value) if which.negated else ~value if which.inverted else value


def floating(m: BlockState, text: str) -> Floats:
    """Return an operand in each thread as a float32; halves are selected by its suffix."""
    which = operand(text)
    if which.kind == "number":
        value = np.full(m.threads, which.number, np.float32)
    else:
        bits = _stored(m, which)
        halves = [s for s in which.suffixes if s in ("H0_H0", "H1_H1")]
        value = half(bits, halves[0] == "H1_H1") if halves else bits.view(np.float32)
    value = np.abs(value) if which.absolute else value
    return -value if which.negated else value


def half(bits: Bits, upper: bool) -> Floats:
    """Return one half of each word, a float16, as a float32."""
    word = bits >> np.uint32(16) if upper else bits
    return word.astype(np.uint16).view(np.float16).astype(np.float32)


def write(
    m: BlockState, text: str, values: npt.NDArray[np.generic], mask: Mask, offset: int = 0
) -> None:
    """Write a 32-bit result where `mask` holds; registers that are always zero stay so."""
    which = operand(text)
    if which.place == ZERO:
        return
    file = m.registers if which.kind == "register" else m.uniform
    bits = values.view(np.uint32) if values.dtype.itemsize == 4 else values.astype(np.uint32)
    np.copyto(file[which.place + offset], bits, where=mask)


def write_number(m: BlockState, text: str, bits: np.uint32, mask: Mask, offset: int = 0) -> None:
    """Write the same 32 bits where `mask` holds."""
    which = operand(text)
    if which.place != ZERO:
        file = m.registers if which.kind == "register" else m.uniform
        np.copyto(file[which.place + offset], bits, where=mask)


def write_wide(m: BlockState, text: str, values: Wide, mask: Mask) -> None:
    """Write a 64-bit result into a pair of registers."""
    write(m, text, (values & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)
    write(m, text, (values >> np.uint64(32)).astype(np.uint32), mask, 1)


def write_predicate(m: BlockState, text: str, values: Mask, mask: Mask) -> None:
    """Write a predicate where `mask` holds; `PT` stays true."""
    if not text.endswith("T"):
        file = m.uniform_predicates if text.startswith("U") else m.predicates
        np.copyto(file[int(text[-1])], values, where=mask)


def address(m: BlockState, text: str) -> npt.NDArray[np.int64]:
    """Return the address of an access in each thread: `[R2.64+0x10]`, `desc[UR4][R2.64]`.

    A sum without a part of 64 bits has 32 bits: a register may hold a negative number.
    """
    match = _ADDRESS.search(text)
    if match is None:
        raise ModelError(f"address {text!r} of an instruction is not known to the model.")
    total = np.zeros(m.threads, np.int64)
    for part in re.findall(r"[-+]?[^-+]+", match["parts"]):
        name, *suffixes = part.lstrip("+").split(".")
        if name in ("RZ", "URZ", "-RZ"):
            continue
        if "64" in suffixes:
            total += wide(m, name).astype(np.int64)
        elif name.startswith(("R", "U")):
            scale = next((int(s[1:]) for s in suffixes if s[0] == "X"), 1)
            total += integer(m, name).astype(np.int64) * scale
        else:
            total += int(name, 16)
    return total if ".64" in match["parts"] else total & 0xFFFFFFFF


def write_comparison(m: BlockState, i: Instruction, result: Mask, mask: Mask) -> None:
    """Write a comparison and its opposite, each combined with the predicate that `i` names."""
    first, second, _, _, predicate = i.operands[:5]
    combine = next(_COMBINATIONS[word] for word in i.modifiers if word in _COMBINATIONS)
    write_predicate(m, first, combine(result, m.guard(predicate)), mask)
    write_predicate(m, second, combine(~result, m.guard(predicate)), mask)
