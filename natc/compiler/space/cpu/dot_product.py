"""Dot products on CPUs: partial sums in the lanes of vector registers, then added up."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.cpu.vector_sums import vector_sum_intrinsic
from natc.compiler.space.loops import inner_loops, is_reduction

# lane_sum: how the partial sums of a dot product become one number.
TREE, INSTRUCTION = 0, 1


@dataclass(frozen=True)
class DotProduct:
    """A block that was split into partial sums: made by `split`, put in its place by `place`."""

    name: str
    lanes: int
    lane_sum: int
    fixed: tuple[str, ...]  # the axes of its result
    partial_sums: tuple[SBlockRV, ...]


def split(sch: Schedule, name: str, lanes: int, lane_sum: int) -> DotProduct:
    """Split a dot product into `lanes` sums, and with TREE those into halves.

    Splitting a reduction must come before the block moves into another's loops.
    """
    block = sch.get_sblock(name)
    axes = [axis.var.name for axis in sch.get(block).iter_vars]
    fixed = tuple(axis for axis in axes if not is_reduction(sch, block, axis))
    partial_sums, width = [], lanes
    while width > 1:
        inner = sch.get_loops(sch.get_sblock(name))[-1]
        _, lane = sch.split(inner, [None, width])
        partial_sums.append(sch.rfactor(lane, len(fixed)))
        if lane_sum == INSTRUCTION:
            break
        width = width // 2
    return DotProduct(name, lanes, lane_sum, fixed, tuple(partial_sums))


def place(sch: Schedule, dot: DotProduct, loop: LoopRV) -> None:
    """Compute a dot product inside a loop, its lanes in vector registers."""
    total = sch.get_sblock(dot.name)
    sch.compute_at(total, loop)
    for block in reversed(dot.partial_sums):
        sch.compute_at(block, loop)
        loops = inner_loops(sch, block, outer=loop, fixed=dot.fixed)
        summed = [inner for axis, inner in loops.items() if is_reduction(sch, block, axis)]
        lane = [inner for axis, inner in loops.items() if not is_reduction(sch, block, axis)]
        sch.reorder(*summed, *lane)
        for inner in summed:
            sch.unroll(inner)
        for inner in lane:
            sch.vectorize(inner)
        if summed:
            sch.decompose_reduction(block, summed[0])
    if not dot.partial_sums:
        return
    (last,) = inner_loops(sch, total, outer=loop, fixed=dot.fixed).values()
    if dot.lane_sum == INSTRUCTION:
        sch.decompose_reduction(total, last)
        update = sch.get_loops(sch.get_sblock(f"{dot.name}_update"))[-1]
        sch.tensorize(update, vector_sum_intrinsic(dot.lanes))
    else:
        sch.unroll(last)
