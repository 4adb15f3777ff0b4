"""Spreads nested loops over threads, as the last step of a schedule.

Schedule primitives refuse loops that contain a reduction with a separate initialization, and
cannot reason about quotients of symbolic sizes. `apply_threads` runs after them, and turns each
iteration into a thread: the thread's number is divided once for each loop, without corrections for
negative numbers, and one condition guards the thread's work.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, Range
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ExprRV, LoopRV

_THREADS, _LOOPS = "natc.threads", "natc.loops"
# Without the prefix `natc.`, by which decisions are read back from a trace.
_CORES = "cores_of_loops"
_THREAD_INDEX = 1  # tvm.tirx.IterVar.ThreadIndex


def spread(sch: Schedule, loops: Sequence[LoopRV], threads: int | ExprRV) -> None:
    """Ask `apply_threads` to make each iteration of nested loops a thread of a GPU.

    loops: the outermost first; their iterations must be independent. threads: of a block.
    """
    sch.annotate(loops[0], _THREADS, threads)
    sch.annotate(loops[0], _LOOPS, len(loops))


def spread_over_cores(sch: Schedule, loops: Sequence[LoopRV]) -> None:
    """Ask `apply_threads` to divide the iterations of nested loops among a CPU's threads.

    loops: the outermost first; their iterations must be independent.
    """
    sch.annotate(loops[0], _CORES, len(loops))


def apply_threads(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a scheduled function after the changes that both functions above ask for."""

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
    # Not `number < total`: the number of a thread past the end may exceed 32 bits.
    body = tirx.IfThenElse(thread < total - block * threads, body, None)
    kept = {k: v for k, v in nest[0].annotations.items() if k not in (_THREADS, _LOOPS)}
    inner = _bound(thread, tirx.const(threads, "int32"), "threadIdx.x", body, kept)
    # Not `total + threads - 1`, which may exceed 32 bits.
    blocks = tirx.truncdiv(total - 1, threads) + 1
    return _bound(block, blocks, "blockIdx.x", inner, {})


def _iterations(nest: Sequence[tirx.For]) -> Expr:
    total = tirx.const(1, "int32")
    for loop in nest:
        total = total * loop.extent
    return total


def _numbered(nest: Sequence[tirx.For], number: Expr) -> tirx.Stmt:
    """Return the body of nested loops for iteration `number`, counted over all of them."""
    body, quotient = nest[-1].body, number
    for position, loop in reversed(list(enumerate(nest))):
        # Numbers are not negative, so truncated division is right.
        index = tirx.truncmod(quotient, loop.extent) if position else quotient
        quotient = tirx.truncdiv(quotient, loop.extent)
        # A loop of one iteration: lowering substitutes its index.
        body = tirx.For(loop.loop_var, index, 1, tirx.ForKind.SERIAL, body)
    return body


def _bound(
    var: tirx.Var, extent: Expr, tag: str, body: tirx.Stmt, annotations: dict[str, object]
) -> tirx.For:
    axis = tirx.IterVar(Range(0, extent), var, _THREAD_INDEX, tag)
    return tirx.For(
        var, tirx.const(0, "int32"), extent, tirx.ForKind.THREAD_BINDING, body, axis, annotations
    )
