"""Design space for gradients on CPUs: the taps of a window's row in the lanes of a vector.

As in `llvm_blocked`, each tap has a vector of partial sums, all of which are folded into one
vector; here for the scores, and again for the gradients of the weights. For each site these come
first: a loop over scores, and one over gradients of the logits, whose iterations do not wait for
each other. What they weigh is added up last, over vectors of channels. Rows, vectors of taps and
taps without a pair are skipped. What taps are read from is copied beforehand (`te.rows`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from natc.compiler.space.correction import merged_loops, skip_pass
from natc.compiler.space.cpu import dot_product
from natc.compiler.space.cpu.rows import covers as covers_forward
from natc.compiler.space.cpu.rows import group_of
from natc.compiler.space.cpu.rows_chunks import chunks
from natc.compiler.space.cpu.tap_rows import (
    copy_taps,
    order_taps,
    place_tables,
    place_weights,
    split_reduction,
)
from natc.compiler.space.decisions import Candidates, Decisions
from natc.compiler.space.loops import has_block, inline, order_sum, query_loops, vectorize
from natc.compiler.space.skip import skip_unless
from natc.compiler.space.threads import spread_over_cores
from natc.compiler.te import backward, bias_rows
from natc.compiler.te.exponential import Exponential
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "llvm_blocked_gather"
VERSION = 1

_DEFINITIONS = {
    "delta": backward.delta,
    "d_query": backward.d_query,
    "d_key": backward.d_key,
    "d_value": backward.d_value,
    "d_rpb": bias_rows.d_rpb,
}
_INLINED = ("batch_index", "head_index", "_tap")


def covers(spec: KernelSpec, operation: str) -> bool:
    """Return whether the space has schedules for an operation of a kernel.

    As for the forward, with vectors of values that are whole and long enough, too. Windows have
    more taps than a vector: copies are not worth it otherwise.
    """
    values = spec.value_dim % 8 == 0 and spec.value_dim >= 16
    many = math.prod(spec.kernel_size) > 4
    return operation in _DEFINITIONS and values and many and covers_forward(spec)


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    widest = max(target.vector_bytes // 4, 4)
    channels = (spec.head_dim, spec.value_dim)
    lanes = [n for n in (8, 16, 4) if n <= widest and not any(c % n for c in channels)]
    return {"lanes": lanes}


def definition(
    operation: str, spec: KernelSpec, exponential: Exponential, *, target: Target
) -> tirx.PrimFunc:
    """Return the unscheduled function of a gradient."""
    return _DEFINITIONS[operation](spec, exponential, lanes=group_of(spec, target))


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `definition`; ScheduleError for a decision out of bounds."""
    choices = decisions.choose_all(structure(spec, target))
    group = group_of(spec, target)
    # A site's vector is not worth a copy if most sites skip the pass over their window.
    inline(sch, (*_INLINED, "_held") if has_block(sch, "corrected") else _INLINED)
    # Splitting a reduction must come before the block moves into another's loops.
    names = [name for name in ("scores", "d_weights") if has_block(sch, name)]
    partial = {name: split_reduction(sch, name, choices["lanes"]) for name in names}
    if has_block(sch, "corrected"):
        _delta(sch, spec, group, choices["lanes"], partial)
    elif has_block(sch, "batch_of_query"):
        chunks(sch, spec, group, partial)
    else:
        _sites(sch, spec, group, partial)
    decisions.annotate(sch, sch.get_sblock("output"))


def _delta(
    sch: Schedule, spec: KernelSpec, group: int, lanes: int, partial: Mapping[str, SBlockRV]
) -> None:
    """Schedule a dot product of each site and, for some sites, a pass over their window.

    partial: sums of lanes of the scores.
    """
    dots = [
        dot_product.split(sch, name, lanes, dot_product.INSTRUCTION)
        for name in ("summed", "terms")
    ]
    batch, *rows, column, site = merged_loops(sch, sch.get_sblock("output"))
    spread_over_cores(sch, [batch, *rows] if rows else [batch, column])
    largest = sch.get_sblock("largest_and_sum")
    sch.compute_at(largest, site)
    taps, _ = order_sum(sch, spec, largest, site)
    weighing, scoring = place_weights(sch, spec, site, group, partial)
    place_tables(sch, spec, rows, column)
    skip_pass(sch, spec, site, [taps[0], weighing[0], scoring[0]])
    for dot in dots:
        dot_product.place(sch, dot, site)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    sch.decompose_reduction(largest, taps[0])


def _sites(sch: Schedule, spec: KernelSpec, group: int, partial: Mapping[str, SBlockRV]) -> None:
    """Schedule sums over the taps of each site; partial: sums of lanes of dot products."""
    last = spec.rank - 1
    output = sch.get_sblock("output")
    batch, (*rows, column), head, channel = query_loops(sch, output)
    vectorize(sch, channel)
    if rows:
        # One head after the other: its taps stay in the cache from one row to the next.
        sch.reorder(batch, head, *rows, column)
    copy_taps(sch)
    spread_over_cores(sch, [batch, head, *rows] if rows else [batch, column])
    site = column if rows else head

    summed = sch.get_sblock("summed")
    sch.compute_at(summed, site)
    summing, tap, channels = order_taps(sch, spec, summed, site, group)
    vectorize(sch, channels[0])
    sch.unroll(tap)
    skipped = [*enumerate(summing), (last, tap)]
    for loops in place_weights(sch, spec, site, group, partial):
        skipped += enumerate(loops)
    place_tables(sch, spec, rows, column)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    sch.decompose_reduction(summed, summing[0])
    for axis, loop in skipped:
        skip_unless(sch, loop, f"attended_{axis}", (f"v_i{axis}", f"v_t{axis}"))
