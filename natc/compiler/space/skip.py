"""Skips taps without a pair, by a condition around the body of a loop over taps.

In a definition, windows have a fixed number of taps, and tables `attended_*` say which taps have a
pair. A key has up to 2K-1 queries on an axis, but most keys have K, so most of the work would be
wasted. Schedule primitives cannot put a condition around several blocks; `apply_skips` does, after
all of them have run.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.ir.expr import TensorLoad
from tvm.s_tir import SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV

_ANNOTATION = "natc.skip"


def skip_unless(sch: Schedule, loop: LoopRV, table: str, axes: Sequence[str]) -> None:
    """Ask `apply_skips` to skip iterations of a loop if an element of the stage `table` is 0.

    axes: the axes of a block inside the loop whose values are the element's indices. An axis of a
    loop further inside counts with its first value.
    """
    sch.annotate(loop, _ANNOTATION, " ".join((table, *axes)))


def apply_skips(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a scheduled function with the conditions that `skip_unless` asked for."""

    def guarded(loop: tirx.For) -> tirx.For:
        if _ANNOTATION not in loop.annotations:
            return loop
        table, *axes = str(loop.annotations[_ANNOTATION]).split()
        element = tirx.BufferLoad(_buffer(function, table), _values(loop.body, axes))
        return tirx.For(
            loop.loop_var,
            loop.min,
            loop.extent,
            loop.kind,
            tirx.IfThenElse(element > 0, loop.body, None),
            loop.thread_binding,
            {k: v for k, v in loop.annotations.items() if k != _ANNOTATION},
        )

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, guarded)))


def _buffer(function: tirx.PrimFunc, name: str) -> tirx.Buffer:
    def of_load(load: TensorLoad) -> tvm_ffi.VisitInterrupt | None:
        return tvm_ffi.VisitInterrupt(load.source) if load.source.name == name else None

    interrupt = tvm_ffi.structural_walk(function.body, (TensorLoad, of_load))
    if interrupt is None:
        raise AssertionError(f"nothing reads {name}")
    return interrupt.value


def _values(body: tirx.Stmt, axes: Sequence[str]) -> list[Expr]:
    """Return the values of axes of the first block in `body` that has them."""
    starts: list[tuple[tirx.Var, Expr]] = []

    def of_loop(loop: tirx.For) -> None:
        starts.append((loop.loop_var, loop.min))

    def of_block(realize: SBlockRealize) -> tvm_ffi.VisitInterrupt | None:
        names = [axis.var.name for axis in realize.block.iter_vars]
        if not set(axes) <= set(names):
            return None
        values = dict(zip(names, realize.iter_values))
        return tvm_ffi.VisitInterrupt([values[axis] for axis in axes])

    def at_start(variable: tirx.Var) -> Expr:
        return next((start for v, start in starts if v.same_as(variable)), variable)

    tvm_ffi.structural_walk(body, (tirx.For, of_loop))
    interrupt = tvm_ffi.structural_walk(body, (SBlockRealize, of_block))
    if interrupt is None:
        raise AssertionError(f"nothing inside the loop has axes {', '.join(axes)}")
    return [tvm_ffi.structural_map(value, (tirx.Var, at_start)) for value in interrupt.value]
