"""Design space for CPUs: each query gathers its keys and values straight from memory, tap by tap.

For kernels that `llvm_blocked` does not have: of float64, or of head dims below 16 or that are no
multiple of 8.

Rows of queries run in parallel. For one query and head, the loop over taps computes a dot product
in `lanes` partial sums, adds them up and applies the bias; the softmax runs over all taps, the
weighted sum over vectors of channels.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.cpu import dot_product
from natc.compiler.space.cpu.dot_product import INSTRUCTION, TREE
from natc.compiler.space.decisions import Candidates, Decisions
from natc.compiler.space.loops import (
    inline,
    inner_loops,
    is_reduction,
    loops_inside,
    query_loops,
    tables_of,
    vectorize,
)
from natc.errors import ScheduleError
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "llvm_direct"
VERSION = 1

# maximum: the largest logit is found in a loop of its own, or as each logit is made.
APART, ALONG = 0, 1
# chains: the weighted sum is one chain of additions, or one for each column of the window.
ONE_CHAIN, CHAIN_A_COLUMN = 0, 1
# parallel: the loops that are spread over threads, beside the batch.
ROWS, ROWS_AND_COLUMNS = 0, 1

# Endings of the names of stages that are computed where they are read.
INLINED = ("_index", "_tap", "inverse_sum", "normalized")


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    widest = 2 * target.vector_bytes // 4
    # In float64, kernels have any head dim, and a register's lanes are the best of those.
    first = target.vector_bytes // 8 if spec.accumulator == "float64" else 4
    lanes = [n for n in (4, 8, 16, 32) if n <= widest and spec.head_dim % n == 0]
    return {
        "lanes": (*sorted(lanes, key=lambda n: (n != first, n)), 1),
        "lane_sum": (TREE, INSTRUCTION) if spec.accumulator == "float32" else (TREE,),
        "maximum": (APART, ALONG),
        "chains": (ONE_CHAIN, CHAIN_A_COLUMN) if spec.rank > 1 else (ONE_CHAIN,),
        "parallel": (ROWS_AND_COLUMNS,) if spec.rank == 1 else (ROWS, ROWS_AND_COLUMNS),
    }


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `te.forward`; ScheduleError for a decision out of bounds."""
    choices = decisions.choose_all(structure(spec, target))
    if choices["lanes"] == 1 and choices["lane_sum"] == INSTRUCTION:
        raise ScheduleError(
            f"decision lane_sum is {INSTRUCTION}; one lane needs no sum over lanes."
        )
    inline(sch, INLINED)
    # Splitting a reduction must come before the block moves into another's loops.
    dot = dot_product.split(sch, "scores", choices["lanes"], choices["lane_sum"])
    chains = split_chains(sch, spec, choices["chains"])

    output = sch.get_sblock("output")
    batch, (*rows, column), head, channel = query_loops(sch, output)
    if spec.value_dim > 1:
        vectorize(sch, channel)
    row = sch.fuse(batch, *rows) if rows else batch
    if choices["parallel"] == ROWS_AND_COLUMNS:
        row = column = sch.fuse(row, column)
    sch.parallel(row)

    sch.compute_at(sch.get_sblock("summed"), head)
    if chains:
        sch.compute_at(chains, head)
    for name in ("sum_weights", "weights", "max_logit", "logits"):
        sch.compute_at(sch.get_sblock(name), head)

    taps = inner_loops(sch, sch.get_sblock("logits"), outer=head, always=("v_t",))["v_t"]
    tap_row, tap = sch.split(taps, [None, spec.kernel_size[-1]])
    unrolled = decisions.sample(sch, "unroll_taps", (0, spec.kernel_size[-1]))
    sch.annotate(tap_row, "pragma_auto_unroll_max_step", unrolled)
    sch.annotate(tap_row, "pragma_unroll_explicit", 1)
    if choices["maximum"] == ALONG:
        sch.reverse_compute_at(sch.get_sblock("max_logit"), tap)
    dot_product.place(sch, dot, tap)
    scaled = sch.get_sblock("query_scaled")
    sch.compute_at(scaled, head)
    if spec.head_dim > 1:
        vectorize(sch, sch.get_loops(scaled)[-1])

    for axis in range(spec.rank):
        for name in tables_of(sch, axis):
            sch.compute_at(sch.get_sblock(name), column if axis == spec.rank - 1 else row)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    weighted_sum(sch, head, chains)
    if choices["maximum"] == ALONG:
        block = sch.get_sblock("max_logit")
        sch.decompose_reduction(block, loops_inside(sch, block, head)[0])
    decisions.annotate(sch, output)


def split_chains(sch: Schedule, spec: KernelSpec, chains: int) -> SBlockRV | None:
    """Give each column of the window a sum of its own; return the block that makes them."""
    if chains == ONE_CHAIN:
        return None
    column = sch.get_loops(sch.get_sblock("summed"))[-1]
    return sch.rfactor(column, 2 + spec.rank)  # behind the site


def weighted_sum(sch: Schedule, site: LoopRV, chains: SBlockRV | None) -> None:
    """Add up weight times value over taps, all channels of a value at once."""
    summed = sch.get_sblock("summed")
    for block in [summed] if chains is None else [chains, summed]:
        loops = inner_loops(sch, block, outer=site)
        channel = loops.pop("v_d", None)
        taps = [loop for axis, loop in loops.items() if is_reduction(sch, block, axis)]
        if not taps:
            taps = [sch.add_unit_loop(next(iter(loops.values()), channel) or block)]
        column = [loop for axis, loop in loops.items() if not is_reduction(sch, block, axis)]
        sch.reorder(*taps, *column, *([channel] if channel else []))
        for loop in column:
            sch.unroll(loop)
        if channel:
            vectorize(sch, channel)
        if chains is not None and block is summed:
            sch.unroll(taps[0])
        sch.decompose_reduction(block, taps[0])
