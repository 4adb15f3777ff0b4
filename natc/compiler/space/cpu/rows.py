"""Design space for CPUs: the taps of a window's row in the lanes of a vector.

Each query takes the scores of a row of its window together: a vector of partial sums for each
tap, all of which are folded into one vector of scores. Bias, mask, maximum, exponential and sum
then run on whole vectors. The last axis of the window is filled up with taps that nothing attends
to. Keys and values may be copied heads first beforehand: tokens of one head that lie a power of
two apart compete for the same few places in a cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.cpu.tap_rows import place_dot_products, place_tables, split_reduction
from natc.compiler.space.cpu.taps import (
    CHAIN_A_COLUMN,
    INLINED,
    ONE_CHAIN,
    split_chains,
    weighted_sum,
)
from natc.compiler.space.cpu.vector_sums import vector_max_intrinsic, vector_sum_intrinsic
from natc.compiler.space.decisions import Candidates, Decisions
from natc.compiler.space.loops import inline, inner_loops, loops_inside, query_loops, vectorize
from natc.compiler.space.threads import spread_over_cores
from natc.compiler.te.exponential import Exponential
from natc.compiler.te.forward import forward
from natc.compiler.te.rows import filled_up
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "llvm_blocked"
VERSION = 1

# copies: of keys and values, heads first, before anything else.
COPIED, IN_PLACE = 1, 0

_COPIES = ("key_copied", "value_copied")
# Reductions over no more vectors than this are written out.
_UNROLLED = 16


def covers(spec: KernelSpec) -> bool:
    """Return whether the space has schedules for a kernel.

    Sums are float32. Vectors of channels are whole, and long enough to be worth the folding.
    """
    return spec.accumulator == "float32" and spec.head_dim % 8 == 0 and spec.head_dim >= 16


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    widest = target.vector_bytes // 4
    # Folding has fewer steps with 8; of many channels, it is a small part.
    order = (8, 16, 4) if spec.head_dim < 64 else (16, 8, 4)
    lanes = [n for n in order if n <= max(widest, 4) and spec.head_dim % n == 0]
    chains = [ONE_CHAIN]
    if spec.rank > 1:
        # Each chain is a vector of channels in registers; 16 registers are too few for a window.
        many_registers = target.arch == "x86-64-v4" and spec.kernel_size[-1] <= 8
        # Vectors of many channels are chains enough: additions to one wait for each other.
        few_channels = spec.value_dim <= 32
        chains.insert(0 if many_registers and few_channels else 1, CHAIN_A_COLUMN)
    return {
        "lanes": lanes,
        "chains": chains,
        "copies": (COPIED, IN_PLACE),
    }


def group_of(spec: KernelSpec, target: Target) -> int:
    """Return how many taps of a row make a vector: 8, or 4 where those fill fewer lanes."""
    last = spec.kernel_size[-1]
    if target.vector_bytes < 32 or filled_up(last, 4) < filled_up(last, 8):
        return 4
    return 8


def definition(
    operation: str,
    spec: KernelSpec,
    exponential: Exponential,
    *,
    target: Target,
    example: Sequence[int] | None = None,
) -> tirx.PrimFunc:
    """Return the unscheduled function of a forward operation; example: see `te.forward`."""
    columns = filled_up(spec.kernel_size[-1], group_of(spec, target))
    return forward(operation, spec, exponential, example=example, columns=columns, copies=True)


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `definition`; ScheduleError for a decision out of bounds."""
    choices = decisions.choose_all(structure(spec, target))
    group = group_of(spec, target)
    inline(sch, INLINED + (() if choices["copies"] else _COPIES))
    if choices["copies"]:
        _copy(sch)
    # Splitting a reduction must come before the block moves into another's loops.
    partial = split_reduction(sch, "scores", choices["lanes"])
    largest = split_reduction(sch, "max_logit", group)
    total = split_reduction(sch, "sum_weights", group)
    chains = split_chains(sch, spec, choices["chains"])

    output = sch.get_sblock("output")
    batch, (*rows, column), head, channel = query_loops(sch, output)
    vectorize(sch, channel)
    if rows:
        # One head after the other: its keys stay in the cache from one row to the next.
        sch.reorder(batch, head, *rows, column)
        spread_over_cores(sch, [batch, head, *rows])
        site = column
    else:
        spread_over_cores(sch, [batch, column])
        site = head

    sch.compute_at(sch.get_sblock("summed"), site)
    if chains:
        sch.compute_at(chains, site)
    for name, in_lanes in (("sum_weights", total), ("max_logit", largest)):
        sch.compute_at(sch.get_sblock(name), site)
        sch.compute_at(in_lanes, site)
        before = "weights" if name == "sum_weights" else "logits"
        sch.compute_at(sch.get_sblock(before), site)
    _scores(sch, spec, site, partial, group, decisions)
    scaled = sch.get_sblock("query_scaled")
    sch.compute_at(scaled, site)
    vectorize(sch, sch.get_loops(scaled)[-1])
    place_tables(sch, spec, rows, column)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    _softmax(sch, site, group)
    weighted_sum(sch, site, chains)
    decisions.annotate(sch, output)


def _copy(sch: Schedule) -> None:
    """Copy keys and values in parallel, a vector of channels at a time."""
    for name in _COPIES:
        batch, head, *positions, channel = sch.get_loops(sch.get_sblock(name))
        spread_over_cores(sch, [batch, head, positions[0]])
        vectorize(sch, channel)


def _scores(
    sch: Schedule,
    spec: KernelSpec,
    site: LoopRV,
    partial: SBlockRV,
    group: int,
    decisions: Decisions,
) -> None:
    """Make the scores of a group of taps together, in the loop over groups of logits."""
    taps = inner_loops(sch, sch.get_sblock("logits"), outer=site)["v_t"]
    columns = filled_up(spec.kernel_size[-1], group)
    tap_row, tap_group, tap = sch.split(taps, [None, columns // group, group])
    sch.vectorize(tap)
    unrolled = decisions.sample(sch, "unroll_rows", (512, 0))
    sch.annotate(tap_row, "pragma_auto_unroll_max_step", unrolled)
    sch.annotate(tap_row, "pragma_unroll_explicit", 1)
    total = sch.get_sblock("scores")
    sch.compute_at(total, tap_group)
    sch.reorder(*reversed(sch.get_loops(total)[-2:]))
    place_dot_products(sch, "scores", partial, tap_group)


def _softmax(sch: Schedule, site: LoopRV, group: int) -> None:
    """Run the softmax on vectors of `group` taps."""
    taps = inner_loops(sch, sch.get_sblock("weights"), outer=site)["v_t"]
    vectors, tap = sch.split(taps, [None, group])
    sch.vectorize(tap)
    for name, intrinsic in (
        ("max_logit", vector_max_intrinsic(group)),
        ("sum_weights", vector_sum_intrinsic(group)),
    ):
        in_lanes = sch.get_sblock(f"{name}_rf")
        lane, *vectors_of = loops_inside(sch, in_lanes, site)
        sch.reorder(*vectors_of, lane)
        sch.vectorize(lane)
        for loop in vectors_of:
            if int(sch.get(loop).extent) <= _UNROLLED:
                sch.unroll(loop)
            sch.decompose_reduction(in_lanes, loop)
        whole = sch.get_sblock(name)
        sch.decompose_reduction(whole, sch.get_loops(whole)[-1])
        update = sch.get_loops(sch.get_sblock(f"{name}_update"))[-1]
        sch.tensorize(update, intrinsic)
