"""The gradient of the bias in `llvm_blocked_gather`: chunks of queries in parallel.

A thread has a chunk of queries of one head. For each query it makes the gradients of the logits as
other gradients do, a vector of taps at a time, and adds rows of them to the sums of their offsets.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from natc.compiler.space.cpu.tap_rows import order_taps, place_weights
from natc.compiler.space.loops import blocks_named, loops_by_axis
from natc.compiler.space.skip import skip_unless
from natc.compiler.space.threads import spread_over_cores
from natc.spec import KernelSpec

_OF_QUERY = ("v_c", "v_h", "v_m")
_FIRST = -2  # where compute_at puts a block: as early as can be
_TABLES = ("start", "attended_", "reached_", "tap_", "low_", "position_", "batch_of_query")


def chunks(sch: Schedule, spec: KernelSpec, group: int, partial: Mapping[str, SBlockRV]) -> None:
    """Schedule the sums over the queries of chunks; partial: sums of lanes of dot products."""
    summed = sch.get_sblock("summed")
    loops = loops_by_axis(sch, summed)
    chunk, head, query = (loops.pop(axis) for axis in _OF_QUERY)
    *rows, last = loops.values()
    vectors, offset = sch.split(last, [None, group])
    sch.reorder(chunk, head, query, *rows, vectors, offset)
    spread_over_cores(sch, [chunk, head])
    sch.vectorize(offset)
    sch.reverse_compute_at(sch.get_sblock("output"), head)

    padded = sch.get_sblock("between_zeros")
    sch.compute_at(padded, query)
    padding, tap, _ = order_taps(sch, spec, padded, query, group, fixed=_OF_QUERY)
    sch.unroll(padding[-1])
    sch.vectorize(tap)
    of_taps = [padding, *place_weights(sch, spec, query, group, partial, fixed=_OF_QUERY)]
    tables = blocks_named(sch, lambda name: name.startswith(_TABLES))
    for prefix in _TABLES:
        for name in (name for name in tables if name.startswith(prefix)):
            # Before everything else: conditions read them, which are there in the end only.
            sch.compute_at(sch.get_sblock(name), query, index=_FIRST)
    sch.decompose_reduction(summed, query)
    # Rows only: a vector of taps without a pair has zeros, which are added.
    for nest in of_taps:
        for axis, loop in enumerate(nest[:-1]):
            skip_unless(sch, loop, f"attended_{axis}", ("v_c", "v_m", f"v_t{axis}"))
    for axis, loop in enumerate(rows):
        skip_unless(sch, loop, f"reached_{axis}", ("v_c", "v_m", f"v_r{axis}"))
