"""Skipping taps that have no pair: a condition around what a loop over taps does.

Windows have a fixed number of taps in a definition, and tables `attended_*` that say which exist.
Seen from a key there are up to 2K-1 on an axis where most keys have K, so most of the work would
be thrown away. Schedule primitives cannot put a condition around several blocks; this does, after
all of them have run.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.ir.expr import TensorLoad
from tvm.s_tir import SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV

_ANNOTATION = "natc.skip"


def skip_unless(sch: Schedule, loop: LoopRV, table: str) -> None:
    """Ask that iterations of a loop are skipped where the stage `table` is 0.

    Something inside the loop must read the table at the loop's own index.
    """
    sch.annotate(loop, _ANNOTATION, table)


def apply_skips(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a scheduled function with the conditions that `skip_unless` asked for."""

    def guarded(loop: tirx.For) -> tirx.For:
        if _ANNOTATION not in loop.annotations:
            return loop
        table = str(loop.annotations[_ANNOTATION])
        return tirx.For(
            loop.loop_var,
            loop.min,
            loop.extent,
            loop.kind,
            tirx.IfThenElse(_element(loop.body, table) > 0, loop.body, None),
            loop.thread_binding,
            {k: v for k, v in loop.annotations.items() if k != _ANNOTATION},
        )

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, guarded)))


def _element(body: tirx.Stmt, table: str) -> Expr:
    """Return the element of a table that blocks inside `body` read, in terms of loop variables."""

    def of_block(realize: SBlockRealize) -> tvm_ffi.VisitInterrupt | None:
        def of_table(load: TensorLoad) -> tvm_ffi.VisitInterrupt | None:
            return tvm_ffi.VisitInterrupt(load) if load.source.name == table else None

        found = tvm_ffi.structural_walk(realize.block.body, (TensorLoad, of_table))
        if found is None:
            return None
        values = list(zip(realize.block.iter_vars, realize.iter_values))

        def value(variable: tirx.Var) -> Expr:
            return next((v for axis, v in values if axis.var.same_as(variable)), variable)

        load = found.value
        indices = [tvm_ffi.structural_map(index, (tirx.Var, value)) for index in load.indices]
        return tvm_ffi.VisitInterrupt(tirx.BufferLoad(load.source, indices))

    found = tvm_ffi.structural_walk(body, (SBlockRealize, of_block))
    if found is None:
        raise AssertionError(f"nothing inside the loop reads {table}")
    return found.value
