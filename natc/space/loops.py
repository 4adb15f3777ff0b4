"""Finding the loops of a block by the axis they run over."""

from __future__ import annotations

from collections.abc import Collection

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IntImm

QUERY_AXES = ("v_b", "v_i", "v_j", "v_h")

_DATA_PARALLEL = 0  # tvm.tirx.IterVar.DataPar


def inner_loops(
    sch: Schedule, block: SBlockRV, *, outer: LoopRV, fixed: Collection[str] = QUERY_AXES
) -> dict[str, LoopRV]:
    """Return the loops of `block` inside the loop `outer`, by the name of their axis.

    `compute_at` makes one loop for each axis of a block, in the block's order, except for axes
    that the loops outside fix to one value (`fixed`) and axes of length one.
    """
    names = [
        axis.var.name
        for axis in sch.get(block).iter_vars
        if axis.var.name not in fixed and not _is_one(axis.dom.extent)
    ]
    loops = sch.get_loops(block)
    inside = loops[depth(sch, loops, outer) + 1 :]
    if len(names) != len(inside):
        raise AssertionError(f"block has axes {names} but {len(inside)} loops inside")
    return dict(zip(names, inside, strict=True))


def query_loops(sch: Schedule, output: SBlockRV) -> list[LoopRV]:
    """Return the loops batch, row, column, head, channel of `output`.

    Where the function has a second result, lse, it moves into the loop over heads: both results
    need what one pass over the window finds.
    """
    if has_block(sch, "lse"):
        sch.merge(sch.get_loops(output)[3], sch.get_loops(sch.get_sblock("lse"))[3])
    return list(sch.get_loops(output))


def depth(sch: Schedule, loops: list[LoopRV], loop: LoopRV) -> int:
    """Return the index of `loop` in `loops`; raise ValueError when it is not among them."""
    wanted = sch.get(loop)
    return [sch.get(found).same_as(wanted) for found in loops].index(True)


def is_reduction(sch: Schedule, block: SBlockRV, axis: str) -> bool:
    """Return whether `axis` of `block` is summed over."""
    kinds = {found.var.name: found.iter_type for found in sch.get(block).iter_vars}
    return bool(kinds[axis] != _DATA_PARALLEL)


def has_block(sch: Schedule, name: str) -> bool:
    """Return whether the function has a block of that name, as optional results do not."""
    return any(
        sch.get(block).name_hint == name for block in sch.get_child_blocks(sch.get_sblock("root"))
    )


def _is_one(extent: object) -> bool:
    return isinstance(extent, IntImm) and extent.value == 1
