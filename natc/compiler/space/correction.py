"""Steps of schedules of `delta`, whose pass over a window most queries skip.

The pass computes a query's correction (`natc.compiler.te.backward`). It is needed where the
rounding of the query's logsumexp would be noticed.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.loops import SITE_AXES
from natc.compiler.space.skip import skip_unless
from natc.spec import KernelSpec

_FIRST = -2  # where compute_at puts a block: as early as can be


def merged_loops(sch: Schedule, delta: SBlockRV) -> list[LoopRV]:
    """Return the loops of the block that stores delta, after moving the correction into them."""
    correction = sch.get_loops(sch.get_sblock("correction"))[-1]
    sch.merge(sch.get_loops(delta)[-1], correction)
    return [*sch.get_loops(delta)]


def skip_pass(
    sch: Schedule, spec: KernelSpec, site: LoopRV, loops: Sequence[LoopRV], scope: str = "global"
) -> None:
    """Skip loops inside the loop `site` for a query without a correction.

    loops: the outermost of each part of the pass. scope: the memory that keeps `corrected`.
    """
    corrected = sch.get_sblock("corrected")
    # Before everything else: conditions read it, which are there in the end only.
    sch.compute_at(corrected, site, index=_FIRST)
    sch.set_scope(corrected, 0, scope)
    name = "corrected" if scope == "global" else f"corrected_{scope}"
    axes = [axis for axis in SITE_AXES if axis in ("v_b", "v_h") or int(axis[-1]) < spec.rank]
    for loop in loops:
        skip_unless(sch, loop, name, axes)
