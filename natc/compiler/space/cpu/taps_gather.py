"""Schedules for CPUs of every operation but the forward: sites in parallel, taps one by one.

For what `llvm_blocked_gather` does not have.

Each site walks over its taps. A tap's dot products are vectors of partial sums, and what they
weigh is added up over vectors of channels. Taps without a pair are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.correction import merged_loops, skip_pass
from natc.compiler.space.cpu import dot_product
from natc.compiler.space.cpu.dot_product import INSTRUCTION, TREE, DotProduct
from natc.compiler.space.decisions import Candidates, Decisions
from natc.compiler.space.loops import (
    has_block,
    inline,
    loops_by_axis,
    order_sum,
    tables_of,
    vectorize,
)
from natc.compiler.space.skip import skip_unless
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "llvm_gather"
VERSION = 1

_INLINED = ("_index", "_site", "_tap")
_OFFSETS = ("v_r0", "v_r1", "v_r2")


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    if spec.accumulator == "float64":
        return {"lanes": (target.vector_bytes // 8, 1), "lane_sum": (TREE,)}
    widest = target.vector_bytes // 4
    return {"lanes": (widest, 2 * widest, widest // 2, 1), "lane_sum": (INSTRUCTION, TREE)}


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of an operation; ScheduleError for a decision out of bounds."""
    choices = decisions.choose_all(structure(spec, target))
    inline(sch, _INLINED)
    if has_block(sch, "corrected"):
        _delta(sch, spec, choices)
    elif has_block(sch, "batch_of_query"):
        _chunks(sch, spec, choices)
    else:
        _sites(sch, spec, choices)
    # A sum over chunks has two blocks by now.
    decisions.annotate(sch, sch.get_sblock("output" if has_block(sch, "output") else "weight"))


def _sites(sch: Schedule, spec: KernelSpec, choices: dict[str, int]) -> None:
    dots = _dots(sch, spec, choices)
    output = sch.get_sblock("output")
    row, column, site, last = _site_loops(sch, output, spec)
    if has_block(sch, "summed"):
        if spec.head_dim > 1 and spec.value_dim > 1:
            vectorize(sch, last)
        summed = sch.get_sblock("summed")
        sch.compute_at(summed, site)
        taps, channel = order_sum(sch, spec, summed, site)
        if channel:
            vectorize(sch, channel)
        tap = taps[-1]
        sch.compute_at(sch.get_sblock("weight"), tap)
    else:
        summed, taps = None, []
        tap = sch.split(last, [None, *spec.kernel_size[1:]])[-1] if spec.rank > 1 else last
    for dot in dots:
        dot_product.place(sch, dot, tap)
    _place_tables(sch, spec, row, column)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    if summed is not None:
        sch.decompose_reduction(summed, taps[0])
    for axis, loop in enumerate(taps):
        skip_unless(sch, loop, f"attended_{axis}", (f"v_i{axis}", f"v_t{axis}"))


def _chunks(sch: Schedule, spec: KernelSpec, choices: dict[str, int]) -> None:
    dots = _dots(sch, spec, choices)
    output = sch.get_sblock("output")
    loops = loops_by_axis(sch, output)
    offsets = {axis: loops[axis] for axis in _OFFSETS if axis in loops}
    sch.reorder(loops["v_c"], loops["v_m"], loops["v_h"], *offsets.values())
    sch.parallel(loops["v_c"])
    offset = list(offsets.values())[-1]
    sch.compute_at(sch.get_sblock("weight"), offset)
    for dot in dots:
        dot_product.place(sch, dot, offset)
    for axis in range(spec.rank):
        for name in tables_of(sch, axis):
            sch.compute_at(sch.get_sblock(name), loops["v_m"])
    sch.compute_at(sch.get_sblock("batch_of_query"), loops["v_m"])
    sch.decompose_reduction(output, loops["v_m"])
    for name, loop in offsets.items():
        skip_unless(sch, loop, f"attended_{name[-1]}", ("v_c", "v_m", name))


def _delta(sch: Schedule, spec: KernelSpec, choices: dict[str, int]) -> None:
    """Schedule a dot product of each site and, for some sites, a pass over their window."""
    (scores,) = _dots(sch, spec, choices, ("scores",))
    dots = _dots(sch, spec, choices, ("terms", "summed"))
    output = sch.get_sblock("output")
    merged_loops(sch, output)
    row, column, site, _ = _site_loops(sch, output, spec)
    largest = sch.get_sblock("largest_and_sum")
    sch.compute_at(largest, site)
    taps, _ = order_sum(sch, spec, largest, site)
    sch.compute_at(sch.get_sblock("weight"), taps[-1])
    dot_product.place(sch, scores, taps[-1])
    _place_tables(sch, spec, row, column)
    skip_pass(sch, spec, site, taps[:1])
    for dot in dots:
        dot_product.place(sch, dot, site)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    sch.decompose_reduction(largest, taps[0])


def _place_tables(sch: Schedule, spec: KernelSpec, row: LoopRV, column: LoopRV) -> None:
    """Place the last axis's tables in the loop over columns, the others' in the loop over rows."""
    for axis in range(spec.rank):
        for name in tables_of(sch, axis):
            sch.compute_at(sch.get_sblock(name), column if axis == spec.rank - 1 else row)


def _dots(
    sch: Schedule,
    spec: KernelSpec,
    choices: dict[str, int],
    names: Sequence[str] = ("scores", "d_weights"),
) -> list[DotProduct]:
    """Split the function's dot products of these names."""
    dots = []
    for name in names:
        if has_block(sch, name):
            channels = spec.head_dim if name in ("scores", "terms") else spec.value_dim
            lanes = _lanes(channels, choices["lanes"])
            dots.append(dot_product.split(sch, name, lanes, _lane_sum(lanes, choices)))
    return dots


def _lanes(channels: int, wanted: int) -> int:
    while channels % wanted:
        wanted //= 2
    return wanted


def _lane_sum(lanes: int, choices: dict[str, int]) -> int:
    return choices["lane_sum"] if lanes > 1 else TREE


def _site_loops(
    sch: Schedule, output: SBlockRV, spec: KernelSpec
) -> tuple[LoopRV, LoopRV, LoopRV, LoopRV]:
    """Run sites in parallel; return the loops of rows, of columns, of sites, and the innermost.

    The row is what all but the last axis is fixed in, the column what all axes are.
    """
    loops = loops_by_axis(sch, output)
    names = list(loops)
    last_axis = f"v_i{spec.rank - 1}"
    until = names.index(last_axis)
    outer = [loops[name] for name in names[:until]]
    column = loops[last_axis]
    if spec.rank == 1:
        row = column = sch.fuse(*outer, column)
    else:
        row = sch.fuse(*outer)
    sch.parallel(row)
    site = loops["v_h"] if names[until + 1] == "v_h" else column
    return row, column, site, loops[names[-1]]
