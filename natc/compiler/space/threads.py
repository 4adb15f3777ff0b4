"""Spreading nested loops over threads, as the last step of a schedule.

Schedule primitives refuse loops that hold a reduction with its initialization apart, and prove
nothing about quotients of symbolic sizes. This puts a thread in the place of each iteration after
all of them have run: its number is divided once for each loop, with no corrections for negative
numbers, and one condition guards what the thread does.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, Range
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ExprRV, LoopRV

_THREADS, _LOOPS = "natc.threads", "natc.loops"
# Not a name by which decisions are read back from a trace (`natc.compiler.space.decisions`).
_CORES = "cores_of_loops"
_THREAD_INDEX = 1  # tvm.tirx.IterVar.ThreadIndex


def spread(sch: Schedule, loops: Sequence[LoopRV], threads: int | ExprRV) -> None:
    """Ask that each iteration of nested loops, the outermost first, becomes a thread.

    The iterations must be independent. threads: of one block.
    """
    sch.annotate(loops[0], _THREADS, threads)
    sch.annotate(loops[0], _LOOPS, len(loops))


def spread_over_cores(sch: Schedule, loops: Sequence[LoopRV]) -> None:
    """Ask that the iterations of nested loops, the outermost first, are shared by a CPU's threads.

    The iterations must be independent.
    """
    sch.annotate(loops[0], _CORES, len(loops))


def apply_threads(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a scheduled function with what `spread` and `spread_over_cores` asked for."""

    def spread_out(loop: tirx.For) -> tirx.For:
        if _CORES in loop.annotations:
            return _parallel(_nest(loop, int(loop.annotations[_CORES])))
        if _THREADS not in loop.annotations:
            return loop
        nest = _nest(loop, int(loop.annotations[_LOOPS]))
        return _grid(nest, int(loop.annotations[_THREADS]))

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, spread_out)))


def _nest(loop: tirx.For, loops: int) -> list[tirx.For]:
    nest = [loop]
    while len(nest) < loops:
        nest.append(nest[-1].body)
    return nest


def _parallel(nest: Sequence[tirx.For]) -> tirx.For:
    number = tirx.Var("number", "int32")
    body = _numbered(nest, number)
    zero = tirx.const(0, "int32")
    return tirx.For(number, zero, _iterations(nest), tirx.ForKind.PARALLEL, body)


def _grid(nest: Sequence[tirx.For], threads: int) -> tirx.For:
    total = _iterations(nest)
    block, thread = tirx.Var("block", "int32"), tirx.Var("thread", "int32")
    body = _numbered(nest, block * threads + thread)
    # Not number < total: past the end, a number may be beyond 32 bits.
    body = tirx.IfThenElse(thread < total - block * threads, body, None)
    kept = {k: v for k, v in nest[0].annotations.items() if k not in (_THREADS, _LOOPS)}
    inner = _bound(thread, tirx.const(threads, "int32"), "threadIdx.x", body, kept)
    # Not total + threads - 1, which may be beyond 32 bits.
    blocks = tirx.truncdiv(total - 1, threads) + 1
    return _bound(block, blocks, "blockIdx.x", inner, {})


def _iterations(nest: Sequence[tirx.For]) -> Expr:
    total = tirx.const(1, "int32")
    for loop in nest:
        total = total * loop.extent
    return total


def _numbered(nest: Sequence[tirx.For], number: Expr) -> tirx.Stmt:
    """Return what nested loops do in their iteration of that number."""
    body, rest = nest[-1].body, number
    for position, loop in reversed(list(enumerate(nest))):
        # Numbers are not negative, so truncated division will do.
        index = tirx.truncmod(rest, loop.extent) if position else rest
        rest = tirx.truncdiv(rest, loop.extent)
        # A loop of one iteration: lowering puts its index wherever it is used.
        body = tirx.For(loop.loop_var, index, 1, tirx.ForKind.SERIAL, body)
    return body


def _bound(
    var: tirx.Var, extent: Expr, tag: str, body: tirx.Stmt, annotations: dict[str, object]
) -> tirx.For:
    axis = tirx.IterVar(Range(0, extent), var, _THREAD_INDEX, tag)
    return tirx.For(
        var, tirx.const(0, "int32"), extent, tirx.ForKind.THREAD_BINDING, body, axis, annotations
    )
