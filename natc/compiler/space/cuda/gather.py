"""Schedules for CUDA cores of every operation but the forward: a thread for each site.

A thread walks over the taps of its site, a query or a key of one head. It moves vectors in the
widest loads that their channels allow and shares nothing with other threads: no shared memory, no
shuffles, no atomics. Sites are numbered through, so that the one grid axis they need is the one
that may be long. Taps without a pair are skipped.
"""

from __future__ import annotations

from typing import NamedTuple

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from natc.compiler.space.correction import merged_loops, skip_pass
from natc.compiler.space.cuda import registers
from natc.compiler.space.cuda.registers import (
    REGISTERS,
    Kept,
    load,
    place,
    place_tables,
    structure,
)
from natc.compiler.space.decisions import Decisions
from natc.compiler.space.loops import has_block, inline, inner_loops, order_sum
from natc.compiler.space.skip import skip_unless
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "cuda_gather"
VERSION = 1

# Tensors with channels, and tensors with one number for each query.
_VECTORS = ("query", "key", "value", "d_output", "attention", "vector")
_NUMBERS = ("lse", "correction", "delta")
_OF_PARTIAL = ("v_c", "v_h", "v_r0", "v_r1", "v_r2")


class _Blocks(NamedTuple):
    """Blocks of a function.

    output: computes the results; stored: copies them to memory. vectors: for each block that sums
    over channels, the stages of the vectors that it reads.
    """

    output: SBlockRV
    stored: SBlockRV
    vectors: dict[str, dict[str, SBlockRV]]


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of an operation; ScheduleError for a decision out of bounds."""
    choices = decisions.choose_all(structure(spec, target))
    # Inlined here, vectors of sites and taps become separate stages of each block that reads them.
    inline(sch, ("_site", "_tap"))
    vectors = {
        name: _staged(sch, name, _VECTORS)
        for name in ("scores", "d_weights", "summed", "terms")
        if has_block(sch, name)
    }
    output = sch.get_sblock("output")
    blocks = _Blocks(output, sch.cache_write(output, 0, REGISTERS), vectors)
    if has_block(sch, "corrected"):
        _delta(sch, spec, decisions, blocks)
    elif has_block(sch, "batch_of_query"):
        _chunks(sch, spec, decisions, choices, blocks)
    elif has_block(sch, "weight"):
        _sums(sch, spec, decisions, choices, blocks)
    else:
        _products(sch, spec, decisions, blocks)
    decisions.annotate(sch, blocks.stored)


def _sums(
    sch: Schedule, spec: KernelSpec, decisions: Decisions, choices: dict[str, int], blocks: _Blocks
) -> None:
    """Schedule sums of weight times vector over the taps of a site: a thread for each site."""
    of_queries = has_block(sch, "key_0")
    numbers = _staged(sch, "weight", _NUMBERS if of_queries else ())
    *site, channel = sch.get_loops(blocks.stored)
    number = registers.parts(registers.extent(sch, channel), choices["sums"])
    part, channel = sch.split(channel, [number, None])
    registers.vectorize(sch, channel, spec)
    thread = registers.one_thread_each(sch, [*site, part], decisions)
    registers.unroll_inside(sch, place(sch, blocks.output, thread), thread)

    summed = place(sch, "summed", thread)
    taps, _ = order_sum(sch, spec, summed, thread)
    tap = taps[-1]
    place(sch, "weight", tap)
    for name in blocks.vectors:
        if name != "summed":
            place(sch, name, tap)
    place_tables(sch, spec, thread)
    # After the tables, since these stages do not declare that they read them: a table placed later
    # would come behind a vector that needs it.
    names = ("query", "d_output") if of_queries else ("key", "value")
    kept = Kept(names, thread, choices["site_bytes"])
    for name, vectors in blocks.vectors.items():
        load(sch, spec, sch.get_sblock(name), tap, vectors, None if name == "summed" else kept)
    for stage in numbers.values():
        place(sch, stage, thread)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    sch.decompose_reduction(summed, taps[0])
    registers.skip_taps(sch, taps)


def _delta(sch: Schedule, spec: KernelSpec, decisions: Decisions, blocks: _Blocks) -> None:
    """Schedule a dot product of each site and, for some sites, a pass over their window."""
    thread = registers.one_thread_each(sch, merged_loops(sch, blocks.stored), decisions)
    place(sch, blocks.output, thread)
    place(sch, "summed", thread)
    largest = place(sch, "largest_and_sum", thread)
    taps, _ = order_sum(sch, spec, largest, thread)
    place(sch, "weight", taps[-1])
    place(sch, "scores", taps[-1])
    # Here, so that a site without the pass does not compute them.
    place_tables(sch, spec, taps[0])
    skip_pass(sch, spec, thread, taps[:1], REGISTERS)
    place(sch, "terms", thread)
    for name, loop in (("summed", thread), ("terms", thread), ("scores", taps[-1])):
        load(sch, spec, sch.get_sblock(name), loop, blocks.vectors[name])
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    sch.decompose_reduction(largest, taps[0])


def _products(sch: Schedule, spec: KernelSpec, decisions: Decisions, blocks: _Blocks) -> None:
    """Schedule dot products, of a site or of a site and its tap: a thread for each."""
    thread = registers.one_thread_each(sch, sch.get_loops(blocks.stored), decisions)
    place(sch, blocks.output, thread)
    for name in blocks.vectors:
        place(sch, name, thread)
    place_tables(sch, spec, thread)
    for name, vectors in blocks.vectors.items():
        load(sch, spec, sch.get_sblock(name), thread, vectors)


def _chunks(
    sch: Schedule, spec: KernelSpec, decisions: Decisions, choices: dict[str, int], blocks: _Blocks
) -> None:
    """Schedule sums over the queries of a chunk: a thread for all offsets of a row.

    Offsets of a row differ on the last axis only, and share the computation of windows. With one
    axis, each offset has a thread.
    """
    loops = sch.get_loops(blocks.stored)
    last = f"v_r{spec.rank - 1}" if spec.rank > 1 else None
    thread = registers.one_thread_each(sch, loops[:-1] if last else loops, decisions)
    output = place(sch, blocks.output, thread)
    fixed = [name for name in _OF_PARTIAL if name != last]
    always = ("v_m", last) if last else ("v_m",)
    inside = inner_loops(sch, output, outer=thread, fixed=fixed, always=always)
    # Loops of one iteration hold the conditions, which read tables of each query.
    conditions = spec.rank - 1 if last else 1
    query, *skipping = sch.split(inside["v_m"], [None, *[1] * conditions])
    inner = once = skipping[-1]
    if last:
        sch.reorder(query, *skipping, inside[last])
        skipping.append(inside[last])
        inner = inside[last]
    place(sch, "weight", inner)
    for name in blocks.vectors:
        place(sch, name, inner)
    place_tables(sch, spec, query)
    place(sch, "batch_of_query", query)
    kept = Kept(("query", "d_output"), once, choices["site_bytes"])
    for name, vectors in blocks.vectors.items():
        load(sch, spec, sch.get_sblock(name), inner, vectors, kept)
    sch.decompose_reduction(output, query)
    for axis, loop in enumerate(skipping):
        skip_unless(sch, loop, f"attended_{axis}_{REGISTERS}", ("v_c", "v_m", f"v_r{axis}"))


def _staged(sch: Schedule, name: str, tensors: tuple[str, ...]) -> dict[str, SBlockRV]:
    """Return stages for the elements that a block reads of some tensors, by tensor name."""
    block = sch.get_sblock(name)
    reads = [str(region.source.name) for region in sch.get(block).reads]
    return {n: sch.reindex(block, ("read", i)) for i, n in enumerate(reads) if n in tensors}
