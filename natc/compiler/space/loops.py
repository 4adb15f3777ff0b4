"""Finds the loops of a block by the names of the axes they run over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IntImm

from natc.spec import KernelSpec

SITE_AXES = ("v_b", "v_i0", "v_i1", "v_i2", "v_h")
TAP_AXES = ("v_t0", "v_t1", "v_t2")
# The integer tables of an axis, before `_` and the axis' number; each reads only later ones.
_TABLES = (
    "slot", "attended", "bias", "tap", "key", "query", "count", "first", "low", "position",
)  # fmt: skip

_DATA_PARALLEL = 0  # tvm.tirx.IterVar.DataPar


def inner_loops(
    sch: Schedule,
    block: SBlockRV,
    *,
    outer: LoopRV,
    fixed: Collection[str] = SITE_AXES,
    always: Sequence[str] = (),
) -> dict[str, LoopRV]:
    """Return the loops of `block` inside the loop `outer`, by the name of their axis.

    `compute_at` makes one loop for each axis of a block, in the block's order, except for axes
    that the loops outside fix to one value (`fixed`) and axes of length one. Axes of length one
    that `always` names get a loop here.
    """
    names = [
        axis.var.name
        for axis in sch.get(block).iter_vars
        if axis.var.name not in fixed and not _is_one(axis.dom.extent)
    ]
    inside = loops_inside(sch, block, outer)
    if len(names) != len(inside):
        raise AssertionError(f"block has axes {names} but {len(inside)} loops inside")
    by_axis = dict(zip(names, inside, strict=True))
    for name in always:
        if name not in by_axis:
            by_axis[name] = sch.add_unit_loop(inside[0] if inside else block)
    return by_axis


def order_sum(
    sch: Schedule, spec: KernelSpec, block: SBlockRV, outer: LoopRV
) -> tuple[list[LoopRV], LoopRV | None]:
    """Order the loops of a sum over taps inside `outer`: taps of each axis, then channels.

    Returns the loops over taps and the loop over channels; None for a single channel.
    """
    axes = TAP_AXES[: spec.rank]
    loops = inner_loops(sch, block, outer=outer, always=axes)
    taps = [loops.pop(axis) for axis in axes]
    sch.reorder(*taps, *loops.values())
    return taps, loops.get("v_d")


def loops_by_axis(sch: Schedule, block: SBlockRV) -> dict[str, LoopRV]:
    """Return the loops of a block that has not been moved yet, by the name of their axis."""
    names = [axis.var.name for axis in sch.get(block).iter_vars]
    return dict(zip(names, sch.get_loops(block), strict=True))


def query_loops(sch: Schedule, output: SBlockRV) -> tuple[LoopRV, list[LoopRV], LoopRV, LoopRV]:
    """Return the loops batch, positions (one for each axis), head and channel of `output`.

    If the function also returns lse, its block moves into the loop over heads, because one pass
    over the window computes the inputs of both results.
    """
    if has_block(sch, "lse"):
        head = sch.get_loops(sch.get_sblock("lse"))[-1]
        sch.merge(sch.get_loops(output)[-2], head)
    batch, *positions, head, channel = sch.get_loops(output)
    return batch, positions, head, channel


def loops_inside(sch: Schedule, block: SBlockRV, outer: LoopRV) -> list[LoopRV]:
    """Return the loops of a block inside its loop `outer`; ValueError if it has no such loop."""
    loops, wanted = sch.get_loops(block), sch.get(outer)
    return loops[[sch.get(loop).same_as(wanted) for loop in loops].index(True) + 1 :]


def vectorize(sch: Schedule, channels: LoopRV) -> None:
    """Vectorize a loop over channels, as one vector or several of a power of two of lanes.

    LLVM computes a vector of 48 or 80 lanes element by element.
    """
    extent = int(sch.get(channels).extent)
    lanes = extent & -extent  # the largest power of two that divides it
    if 4 <= lanes < extent:
        several, channels = sch.split(channels, [None, lanes])
        sch.unroll(several)
    sch.vectorize(channels)


def is_reduction(sch: Schedule, block: SBlockRV, axis: str) -> bool:
    """Return whether `axis` of `block` is summed over."""
    kinds = {each.var.name: each.iter_type for each in sch.get(block).iter_vars}
    return bool(kinds[axis] != _DATA_PARALLEL)


def has_block(sch: Schedule, name: str) -> bool:
    """Return whether the function has a block `name`; blocks of optional results may be absent."""
    return name in blocks_named(sch, lambda _: True)


def blocks_named(sch: Schedule, wanted: Callable[[str], bool]) -> list[str]:
    """Return the names of the function's blocks that `wanted` returns True for."""
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    names = [str(sch.get(block).name_hint) for block in blocks]
    return [name for name in names if wanted(name)]


def inline(sch: Schedule, endings: tuple[str, ...]) -> None:
    """Compute the stages whose names have one of some endings where they are read."""
    for name in blocks_named(sch, lambda name: name.endswith(endings)):
        sch.compute_inline(sch.get_sblock(name))


def tables_of(sch: Schedule, axis: int) -> list[str]:
    """Return the names of an axis' integer tables, in the order in which to place them."""
    blocks = blocks_named(sch, lambda name: name.endswith(f"_{axis}"))
    return [f"{name}_{axis}" for name in _TABLES if f"{name}_{axis}" in blocks]


def _is_one(extent: object) -> bool:
    return isinstance(extent, IntImm) and extent.value == 1
