"""Expressions of vectors: loads, stores and arithmetic of a CPU's vector registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.statements import Statements


def vector_type(lanes: int, dtype: str = "float32") -> str:
    """Return the dtype of a vector of `lanes` numbers, which a register variable may have."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def load(buffer: tirx.Buffer, index: Sequence[Any] | Any, lanes: int) -> Expr:
    """Return `lanes` adjacent elements of a buffer, from `index` on; one index for each axis."""
    return tirx.BufferLoad(buffer, _indices(index, lanes))


def save(
    s: Statements, buffer: tirx.Buffer, index: Sequence[Any] | Any, value: Expr, lanes: int
) -> None:
    """Write `lanes` adjacent elements of a buffer, from `index` on."""
    s.add(tirx.BufferStore(buffer, value, _indices(index, lanes)))


def broadcast(value: Any, lanes: int) -> Expr:
    """Return a vector that holds `value`, a float32 expression or a number, in every lane."""
    value = tirx.const(value, "float32") if isinstance(value, (int, float)) else value
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def multiply_add(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """Return a * b + c as one instruction where the CPU has it, and never reordered."""
    return tirx.call_llvm_pure_intrin(vector_type(lanes), "llvm.fmuladd", a, b, c)


def _indices(index: Sequence[Any] | Any, lanes: int) -> list[Any]:
    *outer, last = index if isinstance(index, Sequence) else (index,)
    outer = [tirx.convert(i) for i in outer]
    last = tirx.convert(last)
    return [*outer, last if lanes == 1 else tirx.Ramp(last, tirx.const(1, "int32"), lanes)]
