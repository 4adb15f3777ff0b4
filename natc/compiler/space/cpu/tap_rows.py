"""Steps of spaces for CPUs that make numbers of a vector of taps together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.cpu.vector_sums import vector_sums_intrinsic
from natc.compiler.space.loops import (
    SITE_AXES,
    TAP_AXES,
    blocks_named,
    inner_loops,
    loops_inside,
    tables_of,
    vectorize,
)
from natc.compiler.space.threads import spread_over_cores
from natc.spec import KernelSpec

# Tokens that are copied by one thread at a time.
_TOKENS_AT_ONCE = 16


def copy_taps(sch: Schedule) -> None:
    """Copy what taps are read from before anything else: in parallel, vectors of channels."""
    names = blocks_named(sch, lambda name: name.endswith("_copied"))
    blocks = [sch.get_sblock(name) for name in names]
    # All copies by the same threads: they have the same heads and tokens.
    token = sch.merge(*(sch.get_loops(block)[2] for block in blocks))
    for block in blocks:
        for channel in sch.get_loops(block)[3:]:
            vectorize(sch, channel)
    batch, head = sch.get_loops(blocks[0])[:2]
    many, _ = sch.split(token, [None, _TOKENS_AT_ONCE])
    spread_over_cores(sch, [batch, head, many])


def place_tables(sch: Schedule, spec: KernelSpec, rows: Sequence[LoopRV], column: LoopRV) -> None:
    """Place each axis's tables in the loop over its sites; rows: loops of all axes but the last.

    The columns' tables are computed once, before the loops over rows.
    """
    for axis in range(spec.rank):
        for name in tables_of(sch, axis):
            if axis < spec.rank - 1:
                sch.compute_at(sch.get_sblock(name), rows[-1])
            elif not rows:
                sch.compute_at(sch.get_sblock(name), column)


def split_reduction(sch: Schedule, name: str, lanes: int) -> SBlockRV:
    """Split a reduction into `lanes` ones; return the block that makes them."""
    block = sch.get_sblock(name)
    fixed = len(sch.get(block).iter_vars) - 1
    _, lane = sch.split(sch.get_loops(block)[-1], [None, lanes])
    return sch.rfactor(lane, fixed)


def order_taps(
    sch: Schedule,
    spec: KernelSpec,
    block: SBlockRV,
    site: LoopRV,
    group: int,
    *,
    fixed: Collection[str] = SITE_AXES,
) -> tuple[list[LoopRV], LoopRV, list[LoopRV]]:
    """Order loops of a block in `site`: rows and vectors of taps, a vector's taps, the rest."""
    axes = TAP_AXES[: spec.rank]
    loops = inner_loops(sch, block, outer=site, fixed=fixed, always=axes)
    *rows, last = [loops.pop(axis) for axis in axes]
    vectors, tap = sch.split(last, [None, group])
    sch.reorder(*rows, vectors, tap, *loops.values())
    return [*rows, vectors], tap, [*loops.values()]


def place_weights(
    sch: Schedule,
    spec: KernelSpec,
    site: LoopRV,
    group: int,
    partial: Mapping[str, SBlockRV],
    *,
    fixed: Collection[str] = SITE_AXES,
) -> list[list[LoopRV]]:
    """Place the weights, and the scores they depend on, inside the loop over sites.

    partial: of the dot products, by their names. Returns the loops of each block over rows and
    vectors of taps. Scores have a loop of their own, so that no exponential waits for them.
    """
    weight = sch.get_sblock("weight")
    sch.compute_at(weight, site)
    weighing, lane, _ = order_taps(sch, spec, weight, site, group, fixed=fixed)
    sch.vectorize(lane)
    if "d_weights" in partial:
        d_weights = sch.get_sblock("d_weights")
        sch.compute_at(d_weights, weighing[-1])
        sch.reorder(*reversed(sch.get_loops(d_weights)[-2:]))
        place_dot_products(sch, "d_weights", partial["d_weights"], weighing[-1])
    scores = sch.get_sblock("scores")
    sch.compute_at(scores, site)
    scoring, *_ = order_taps(sch, spec, scores, site, group, fixed=fixed)
    place_dot_products(sch, "scores", partial["scores"], scoring[-1])
    for name in blocks_named(sch, lambda name: name.endswith("_held")):
        held = sch.get_sblock(name)
        sch.compute_at(held, site)
        vectorize(sch, sch.get_loops(held)[-1])
    return [weighing, scoring]


def place_dot_products(sch: Schedule, name: str, partial: SBlockRV, vectors: LoopRV) -> None:
    """Make the dot products of a vector of taps together, in the loop over vectors.

    Those of all taps are in that loop already; partial: what makes the sums of lanes.
    """
    total = sch.get_sblock(name)
    sch.compute_at(partial, vectors)
    lane, number, *summed = loops_inside(sch, partial, vectors)
    sch.reorder(number, *summed, lane)
    for loop in (number, *summed):
        sch.unroll(loop)
    sch.vectorize(lane)
    if summed:
        sch.decompose_reduction(partial, summed[0])

    number, lane = sch.get_loops(total)[-2:]
    start = sch.decompose_reduction(total, number)
    sch.vectorize(sch.get_loops(start)[-1])
    update = sch.get_loops(sch.get_sblock(f"{name}_update"))[-2]
    count, lanes = (int(sch.get(loop).extent) for loop in (number, lane))
    sch.tensorize(update, vector_sums_intrinsic(count, lanes))
