"""Design space for CPUs: each query gathers its keys and values straight from memory.

Rows of queries run in parallel. For one query and head, the loop over taps computes a dot product
in `lanes` partial sums, adds them up and applies the bias; the softmax runs over all taps, the
weighted sum over vectors of channels.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.errors import ScheduleError
from natc.space.decisions import Candidates, Decisions
from natc.space.loops import QUERY_AXES, depth, inner_loops, is_reduction, query_loops
from natc.space.vector_sum import vector_sum_intrinsic
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "llvm_direct"
VERSION = 1

# lane_sum: how the partial sums of a dot product become one number.
TREE, INSTRUCTION = 0, 1
# maximum: the largest logit is found in a loop of its own, or as each logit is made.
APART, ALONG = 0, 1
# chains: the weighted sum is one chain of additions, or one for each column of the window.
ONE_CHAIN, CHAIN_A_COLUMN = 0, 1
# parallel: the loops that are spread over threads, beside the batch.
ROWS, ROWS_AND_COLUMNS = 0, 1

_TAP_AXES = ("v_m", "v_n")
_INLINED = ("batch_index", "head_index", "key_tap", "value_tap", "inverse_sum", "normalized")


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    widest = 2 * target.vector_bytes // 4
    lanes = [n for n in (4, 8, 16, 32) if n <= widest and spec.head_dim % n == 0]
    return {
        "lanes": (1, *lanes),
        "lane_sum": (TREE, INSTRUCTION),
        "maximum": (APART, ALONG),
        "chains": (ONE_CHAIN, CHAIN_A_COLUMN),
        "parallel": (ROWS, ROWS_AND_COLUMNS),
    }


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `natc.te.forward`; ScheduleError for a decision out of bounds."""
    choices = {
        name: decisions.choose(name, values) for name, values in structure(spec, target).items()
    }
    if choices["lanes"] == 1 and choices["lane_sum"] == INSTRUCTION:
        raise ScheduleError(
            f"decision lane_sum is {INSTRUCTION}; one lane needs no sum over lanes."
        )
    for name in _INLINED:
        sch.compute_inline(sch.get_sblock(name))
    # Splitting a reduction must come before the block moves into another's loops.
    partial_sums = _partial_sums(sch, choices["lanes"], choices["lane_sum"])
    chains = _chains(sch, choices["chains"])

    output = sch.get_sblock("output")
    batch, row, column, head, channel = query_loops(sch, output)
    if spec.head_dim > 1:
        sch.vectorize(channel)
    row = sch.fuse(batch, row)
    if choices["parallel"] == ROWS_AND_COLUMNS:
        row = column = sch.fuse(row, column)
    sch.parallel(row)

    sch.compute_at(sch.get_sblock("summed"), head)
    if chains:
        sch.compute_at(chains, head)
    for name in ("sum_weights", "weights", "max_logit", "logits"):
        sch.compute_at(sch.get_sblock(name), head)

    taps = inner_loops(sch, sch.get_sblock("logits"), outer=head)["v_t"]
    tap_row, tap = sch.split(taps, [None, spec.kernel_size[1]])
    unrolled = decisions.sample(sch, "unroll_taps", (0, spec.kernel_size[1]))
    sch.annotate(tap_row, "pragma_auto_unroll_max_step", unrolled)
    sch.annotate(tap_row, "pragma_unroll_explicit", 1)
    if choices["maximum"] == ALONG:
        sch.reverse_compute_at(sch.get_sblock("max_logit"), tap)
    _place_dot_product(sch, tap, choices["lanes"], choices["lane_sum"], partial_sums)
    scaled = sch.get_sblock("query_scaled")
    sch.compute_at(scaled, head)
    if spec.head_dim > 1:
        sch.vectorize(sch.get_loops(scaled)[-1])

    for axis, loop in (("row", row), ("column", column)):
        for name in ("key", "count", *(("bias",) if spec.rpb else ())):
            sch.compute_at(sch.get_sblock(f"{name}_{axis}"), loop)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    _weighted_sum(sch, head, chains)
    if choices["maximum"] == ALONG:
        block = sch.get_sblock("max_logit")
        loops = sch.get_loops(block)
        sch.decompose_reduction(block, loops[depth(sch, loops, head) + 1])
    decisions.annotate(sch, output)


def _partial_sums(sch: Schedule, lanes: int, lane_sum: int) -> list[SBlockRV]:
    """Split the dot product into `lanes` sums, and with TREE those into halves; return blocks."""
    blocks = []
    while lanes > 1:
        inner = sch.get_loops(sch.get_sblock("scores"))[-1]
        _, lane = sch.split(inner, [None, lanes])
        blocks.append(sch.rfactor(lane, 6))
        if lane_sum == INSTRUCTION:
            break
        lanes = lanes // 2
    return blocks


def _place_dot_product(
    sch: Schedule, tap: LoopRV, lanes: int, lane_sum: int, partial_sums: list[SBlockRV]
) -> None:
    """Compute one tap's dot product inside its loop, lanes in vector registers."""
    scores = sch.get_sblock("scores")
    sch.compute_at(scores, tap)
    fixed = (*QUERY_AXES, *_TAP_AXES)
    for block in reversed(partial_sums):
        sch.compute_at(block, tap)
        loops = inner_loops(sch, block, outer=tap, fixed=fixed)
        summed = [loop for axis, loop in loops.items() if is_reduction(sch, block, axis)]
        lane = [loop for axis, loop in loops.items() if not is_reduction(sch, block, axis)]
        sch.reorder(*summed, *lane)
        for loop in summed:
            sch.unroll(loop)
        for loop in lane:
            sch.vectorize(loop)
        if summed:
            sch.decompose_reduction(block, summed[0])
    if not partial_sums:
        return
    (last,) = inner_loops(sch, scores, outer=tap, fixed=fixed).values()
    if lane_sum == INSTRUCTION:
        sch.decompose_reduction(scores, last)
        update = sch.get_loops(sch.get_sblock("scores_update"))[-1]
        sch.tensorize(update, vector_sum_intrinsic(lanes))
    else:
        sch.unroll(last)


def _chains(sch: Schedule, chains: int) -> SBlockRV | None:
    """Give each column of the window a sum of its own; return the block that makes them."""
    if chains == ONE_CHAIN:
        return None
    column = sch.get_loops(sch.get_sblock("summed"))[-1]
    return sch.rfactor(column, 4)


def _weighted_sum(sch: Schedule, head: LoopRV, chains: SBlockRV | None) -> None:
    """Add up weight times value over taps, all channels of a value at once."""
    summed = sch.get_sblock("summed")
    for block in [summed] if chains is None else [chains, summed]:
        loops = inner_loops(sch, block, outer=head)
        channel = loops.pop("v_d", None)
        taps = [loop for axis, loop in loops.items() if is_reduction(sch, block, axis)]
        column = [loop for axis, loop in loops.items() if not is_reduction(sch, block, axis)]
        sch.reorder(*taps, *column, *([channel] if channel else []))
        for loop in column:
            sch.unroll(loop)
        if channel:
            sch.vectorize(channel)
        if chains is not None and block is summed:
            sch.unroll(taps[0])
        sch.decompose_reduction(block, taps[0])
