"""Schedules for CUDA cores of the forward over large windows: a thread for each query of a head.

A thread walks over its window twice (`te.streamed`) and shares nothing with other threads. If it
cannot keep the sums of all channels, it walks once more for each further part of them.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

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
from natc.compiler.space.loops import has_block, order_sum
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "cuda_streamed"
VERSION = 1


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `te.streamed`; ScheduleError for a decision out of bounds."""
    choices = decisions.choose_all(structure(spec, target))
    output = sch.get_sblock("output")
    stored = sch.cache_write(output, 0, REGISTERS)
    if has_block(sch, "lse"):
        sch.merge(sch.get_loops(stored)[-2], sch.get_loops(sch.get_sblock("lse"))[-1])
    *site, channel = sch.get_loops(stored)
    thread = registers.one_thread_each(sch, site, decisions)
    number = registers.parts(registers.extent(sch, channel), choices["sums"])
    part, channel = sch.split(channel, [number, None])
    registers.vectorize(sch, channel, spec)
    registers.unroll_inside(sch, place(sch, output, part), part)

    summed = place(sch, "summed", part)
    second, _ = order_sum(sch, spec, summed, part)
    place(sch, "weight", second[-1])
    place(sch, "inverse_sum", thread)
    largest = place(sch, "largest_and_sum", thread)
    first, _ = order_sum(sch, spec, largest, thread)
    place(sch, "logits", first[-1])

    passes = (("first", first[-1]), ("second", second[-1]))
    scores = [place(sch, f"scores_{name}", tap) for name, tap in passes]
    load(sch, spec, summed, second[-1], {"value": sch.get_sblock("value_tap")})
    kept = Kept(("query",), thread, choices["site_bytes"])
    for (name, tap), block in zip(passes, scores):
        vectors = {kind: sch.get_sblock(f"{kind}_{name}") for kind in ("query", "key")}
        load(sch, spec, block, tap, vectors, kept)
    place_tables(sch, spec, thread)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    sch.decompose_reduction(largest, first[0])
    sch.decompose_reduction(summed, second[0])
    for taps in (first, second):
        registers.skip_taps(sch, taps)
    decisions.annotate(sch, stored)
