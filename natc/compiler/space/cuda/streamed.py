"""Schedules for CUDA cores of the forward over large windows: a thread for each query of a head.

A thread walks over its window twice (`te.streamed`) and shares nothing with other threads. If it
cannot keep the sums of all channels, it walks once more for each further part of them.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.cuda import registers
from natc.compiler.space.cuda.registers import REGISTERS, Kept, load, place, place_tables
from natc.compiler.space.decisions import Candidates, Decisions
from natc.compiler.space.loops import TAP_AXES, has_block, inner_loops
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "cuda_streamed"
VERSION = 1


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    return registers.structure()


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `te.streamed`; ScheduleError for a decision out of bounds."""
    choices = {n: decisions.choose(n, values) for n, values in structure(spec, target).items()}
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
    axes = TAP_AXES[: spec.rank]
    loops = inner_loops(sch, summed, outer=part, always=axes)
    second = {axis: loops[axis] for axis in axes}
    if "v_d" in loops:
        sch.reorder(*second.values(), loops["v_d"])
    place(sch, "weight", _last(second))
    place(sch, "inverse_sum", thread)
    largest = place(sch, "largest_and_sum", thread)
    loops = inner_loops(sch, largest, outer=thread, always=axes)
    first = {axis: loops[axis] for axis in axes}
    place(sch, "logits", _last(first))

    passes = (("first", _last(first)), ("second", _last(second)))
    scores = [place(sch, f"scores_{name}", tap) for name, tap in passes]
    load(sch, spec, summed, _last(second), {"value": sch.get_sblock("value_tap")})
    kept = Kept(("query",), thread, choices["site_bytes"])
    for (name, tap), block in zip(passes, scores):
        load(sch, spec, block, tap, _vectors(sch, name), kept)
    place_tables(sch, spec, thread)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    sch.decompose_reduction(largest, next(iter(first.values())))
    sch.decompose_reduction(summed, next(iter(second.values())))
    for taps in (first, second):
        registers.skip_taps(sch, taps)
    decisions.annotate(sch, stored)


def _last(taps: dict[str, LoopRV]) -> LoopRV:
    return list(taps.values())[-1]


def _vectors(sch: Schedule, name: str) -> dict[str, SBlockRV]:
    return {kind: sch.get_sblock(f"{kind}_{name}") for kind in ("query", "key")}
