"""Skipping taps that have no pair: a condition around what a loop over taps does.

Windows have a fixed number of taps in a definition, and tables `attended_*` that say which exist.
Seen from a key there are up to 2K-1 on an axis where most keys have K, so most of the work would
be thrown away. Schedule primitives cannot put a condition around several blocks; this does, after
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
    """Ask that iterations of a loop are skipped where an element of the stage `table` is 0.

    axes: of a block inside the loop, whose values are the element's indices; where loops inside
    the loop run over them, their first values.
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

    found = tvm_ffi.structural_walk(function.body, (TensorLoad, of_load))
    if found is None:
        raise AssertionError(f"nothing reads {name}")
    return found.value


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
    found = tvm_ffi.structural_walk(body, (SBlockRealize, of_block))
    if found is None:
        raise AssertionError(f"nothing inside the loop has axes {', '.join(axes)}")
    return [tvm_ffi.structural_map(value, (tirx.Var, at_start)) for value in found.value]
