"""Tensor intrinsics: sums of the lanes of vector registers, and the largest of one's lanes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T


@functools.cache
def vector_sums_intrinsic(count: int, lanes: int) -> str:
    """Register the intrinsic for the sum of each of `count` rows of `lanes` float32.

    Returns its name. Both are powers of two. The rows are folded into each other, so that one
    vector of all sums comes out: about four instructions for each row, and no sum is taken apart
    by itself.
    """
    row, result = f"float32x{lanes}", f"float32x{count}"

    def sums(V: tirx.Buffer) -> Expr:
        # Vectors have names: each is used twice, and would be written out as often as that.
        named: list[tuple[tirx.Var, Expr]] = []

        def name(vector: Expr) -> tirx.Var:
            named.append((tirx.Var(f"v{len(named)}", vector.ty), vector))
            return named[-1][0]

        total = _sums([V.vload([number, 0], row) for number in range(count)], lanes, name)
        for variable, vector in reversed(named):
            total = tirx.Let(variable, vector, total)
        return total

    @T.prim_func(s_tir=True)
    def description(rows: T.handle, totals: T.handle) -> None:
        V = T.match_buffer(rows, (count, lanes), "float32", offset_factor=1)
        S = T.match_buffer(totals, (count,), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(S[0:count], V[0:count, 0:lanes])
            T.writes(S[0:count])
            for number, lane in T.grid(count, lanes):
                with T.sblock("sum"):
                    at, to = T.axis.remap("RS", [lane, number])
                    S[to] = S[to] + V[to, at]

    @T.prim_func(s_tir=True)
    def implementation(rows: T.handle, totals: T.handle) -> None:
        V = T.match_buffer(rows, (count, lanes), "float32", offset_factor=1)
        S = T.match_buffer(totals, (count,), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(S[0:count], V[0:count, 0:lanes])
            T.writes(S[0:count])
            S[T.Ramp(0, 1, count)] = S.vload([0], result) + sums(V)

    name = f"natc.vector_sums_{count}_{lanes}"
    TensorIntrin.register(name, description, implementation, override=True)
    return name


@functools.cache
def vector_sum_intrinsic(lanes: int) -> str:
    """Register the intrinsic that adds `lanes` adjacent float32 to one; return its name.

    Left to itself, LLVM takes the vector apart one lane at a time.
    """
    vector = f"float32x{lanes}"

    def total(before: Expr, V: tirx.Buffer) -> Expr:
        return before + T.call_llvm_pure_intrin(
            "float32", "llvm.vector.reduce.fadd", T.float32(0), V.vload([0], vector)
        )

    return _register(f"natc.vector_sum_{lanes}", lanes, lambda a, b: a + b, total)


@functools.cache
def vector_max_intrinsic(lanes: int) -> str:
    """Register the intrinsic for the largest of `lanes` adjacent float32; return its name."""
    vector = f"float32x{lanes}"

    def largest(before: Expr, V: tirx.Buffer) -> Expr:
        result, width = V.vload([0], vector), lanes
        while width > 1:
            width //= 2
            halves = [_shuffled([result], range(at, at + width)) for at in (0, width)]
            result = tirx.max(*halves)
        return tirx.max(before, result)

    return _register(f"natc.vector_max_{lanes}", lanes, tirx.max, largest)


def _register(
    name: str,
    lanes: int,
    combine: Callable[[Expr, Expr], Expr],
    all_lanes: Callable[[Expr, tirx.Buffer], Expr],
) -> str:
    """Register an intrinsic that takes `lanes` adjacent float32 into one; return its name.

    combine: takes one lane into a result; all_lanes: takes all of them at once.
    """

    @T.prim_func(s_tir=True)
    def description(vector: T.handle, result: T.handle) -> None:
        V = T.match_buffer(vector, (lanes,), "float32", offset_factor=1)
        S = T.match_buffer(result, (1,), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(S[0], V[0:lanes])
            T.writes(S[0])
            for lane in range(lanes):
                with T.sblock("lane"):
                    at = T.axis.reduce(lanes, lane)
                    S[0] = combine(S[0], V[at])

    @T.prim_func(s_tir=True)
    def implementation(vector: T.handle, result: T.handle) -> None:
        V = T.match_buffer(vector, (lanes,), "float32", offset_factor=1)
        S = T.match_buffer(result, (1,), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(S[0], V[0:lanes])
            T.writes(S[0])
            S[0] = all_lanes(S[0], V)

    TensorIntrin.register(name, description, implementation, override=True)
    return name


def _sums(rows: Sequence[Expr], lanes: int, name: Callable[[Expr], tirx.Var]) -> Expr:
    """Return a vector with the sum of the lanes of each row; name: gives a vector a name."""
    count = len(rows)
    if count > lanes:
        halves = (rows[: count // 2], rows[count // 2 :])
        return _shuffled([name(_sums(half, lanes, name)) for half in halves], range(count))
    vectors, granule = [name(row) for row in rows], count
    while granule > 1:
        granule //= 2
        # Lanes whose number has this bit hold the second of two rows from here on. A blend and a
        # swap: with two interleavings instead, LLVM makes slow horizontal additions.
        kept = [lane + lanes * bool(lane & granule) for lane in range(lanes)]
        swapped = [(lane ^ granule) + lanes * bool(lane & granule) for lane in range(lanes)]
        half = len(vectors) // 2
        vectors = [
            name(_shuffled(pair, kept) + _shuffled(pair, swapped))
            for pair in zip(vectors[:half], vectors[half:])
        ]
    (total,) = vectors
    while lanes > count:
        lanes //= 2
        low, high = range(lanes), range(lanes, 2 * lanes)
        total = name(_shuffled([total], low) + _shuffled([total], high))
    return total


def _shuffled(vectors: Iterable[Expr], lanes: Iterable[int]) -> Expr:
    """Return a vector of the given lanes of vectors, counted through all of them."""
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])
