"""Expressions of vectors: loads, stores and arithmetic of a CPU's vector registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def load_float(buffer: tirx.Buffer, index: Sequence[Any] | Any, lanes: int) -> Expr:
    """Return `lanes` adjacent elements of a buffer of any floating-point type as float32."""
    value = load(buffer, index, lanes)
    if buffer.ty.dtype != "bfloat16":
        return value.astype(vector_type(lanes))
    # By its bits: TVM converts a bfloat16 that a variable is bound to as if it were an integer.
    bits = tirx.reinterpret(vector_type(lanes, "uint16"), value).astype(
        vector_type(lanes, "uint32")
    )
    shift = broadcast(tirx.const(16, "uint32"), lanes)
    return tirx.reinterpret(vector_type(lanes), bits << shift)


def save(
    s: Statements, buffer: tirx.Buffer, index: Sequence[Any] | Any, value: Expr, lanes: int
) -> None:
    """Write `lanes` adjacent elements of a buffer, from `index` on."""
    s.add(tirx.BufferStore(buffer, value, _indices(index, lanes)))


def broadcast(value: Any, lanes: int) -> Expr:
    """Return a vector that holds `value`, a scalar expression or a float, in every lane."""
    value = tirx.const(value, "float32") if isinstance(value, (int, float)) else value
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def multiply_add(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """Return a * b + c as one instruction where the CPU has it, and never reordered."""
    return tirx.call_llvm_pure_intrin(vector_type(lanes), "llvm.fmuladd", a, b, c)


def shuffled(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """Return a vector of the given lanes of vectors, counted through all of them."""
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])


def permuted(vector: Expr, lanes: Expr) -> Expr:
    """Return a vector of 8 float32 with lane lanes[i] of `vector` in lane i; needs AVX2."""
    return tirx.call_llvm_pure_intrin("float32x8", "llvm.x86.avx2.permps", vector, lanes)


def folded(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Return the combination of all lanes of a vector as a scalar.

    combine(a, b): combines two vectors, or two scalars, lane by lane.
    """
    while lanes > 1:
        lanes //= 2
        halves = range(lanes), range(lanes, 2 * lanes)
        vector = combine(*(shuffled([vector], half) for half in halves))
    return vector


def transposed(s: Statements, rows: Sequence[Expr]) -> list[Expr]:
    """Return the columns of a square of 4 or 8 vectors, which are as many as they have lanes."""
    lanes = len(rows)
    rows = [s.let("row", row) for row in rows]
    blocks = range(0, lanes, 4)

    def each(pairs: Sequence[tuple[int, int]], *patterns: Sequence[int]) -> list[Expr]:
        """Combine pairs of rows by patterns of lanes of a block of four: 4.. is the second row."""
        result = []
        for a, b in pairs:
            for pattern in patterns:
                order = [
                    block + (lane if lane < 4 else lane - 4 + lanes)
                    for block in blocks
                    for lane in pattern
                ]
                result.append(s.let("row", shuffled([rows[a], rows[b]], order)))
        return result

    rows = each([(i, i + 1) for i in range(0, lanes, 2)], (0, 4, 1, 5), (2, 6, 3, 7))
    pairs = [(block + i, block + i + 2) for block in blocks for i in (0, 1)]
    rows = each(pairs, (0, 1, 4, 5), (2, 3, 6, 7))
    if lanes == 4:
        return rows
    halves = ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
    return [
        s.let("row", shuffled([rows[i], rows[i + 4]], half)) for half in halves for i in range(4)
    ]


def _indices(index: Sequence[Any] | Any, lanes: int) -> list[Any]:
    *outer, last = index if isinstance(index, Sequence) else (index,)
    outer = [tirx.convert(i) for i in outer]
    last = tirx.convert(last)
    return [*outer, last if lanes == 1 else tirx.Ramp(last, tirx.const(1, "int32"), lanes)]
