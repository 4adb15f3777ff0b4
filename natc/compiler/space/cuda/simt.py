"""Design space for CUDA cores: a thread, or a few lanes of a warp, computes one query of one head.

A block of threads covers a tile of queries of one head, so that its keys and values stay in the
L1 cache. The lanes of a query share its channels: each loads one vector of every key and value,
and a dot product is added up by warp shuffles.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.cuda.registers import (
    BYTES,
    REGISTERS,
    WIDEST_LOAD,
    extent,
    load_width,
    place,
    place_tables,
)
from natc.compiler.space.decisions import Candidates, Decisions
from natc.compiler.space.loops import inner_loops, loops_inside, order_sum, query_loops
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "cuda_simt"
VERSION = 1

_TILE_HEIGHTS = (4, 1, 2, 8)
_MOST_THREADS = 1024  # of one block


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    # Lanes of a query are a power of two, so that no query's shuffles cross a warp.
    dims = (spec.head_dim, spec.value_dim)
    lanes = [n for n in (1, 2, 4, 8, 16, 32) if all(dim % n == 0 for dim in dims)]
    full = [n for n in lanes if spec.head_dim // n * BYTES[spec.dtype] >= WIDEST_LOAD]
    # With more lanes than full loads need, part of each memory transaction would be unused.
    return {"lanes": tuple(reversed(full[-3:])) or (lanes[-1],)}


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `te.forward`; ScheduleError for a decision out of bounds."""
    lanes = decisions.choose("lanes", structure(spec, target)["lanes"])
    if spec.rank == 1:
        heights: tuple[int, ...] = (1,)
        widths = [n for n in (16, 8, 32, 64) if n * lanes <= _MOST_THREADS]
    else:
        heights = _TILE_HEIGHTS
        widths = [n for n in (4, 2, 8, 16) if max(heights) * n * lanes <= _MOST_THREADS]
    tile_h = decisions.sample(sch, "tile_h", heights)
    tile_w = decisions.sample(sch, "tile_w", widths)
    unroll = decisions.sample(sch, "unroll", (64, 0, 16, 512))

    output = sch.get_sblock("output")
    batch, positions, head, _ = query_loops(sch, output)
    *planes, row, column = [None, *positions] if spec.rank == 1 else positions
    column, query = sch.split(column, [None, tile_w])
    if row is None:
        # A sequence may be long, and x is the only axis of a grid that may be.
        sch.reorder(batch, head, column, query)
        sch.bind(sch.fuse(batch, head, column), "blockIdx.x")
    else:
        # Rows and columns of tiles have a grid axis each, so that no index is a quotient; batch,
        # planes and heads share the third.
        row, row_in = sch.split(row, [None, tile_h])
        sch.reorder(batch, *planes, head, row, column, row_in, query)
        sch.bind(row, "blockIdx.y")
        sch.bind(column, "blockIdx.z")
        query = sch.fuse(row_in, query)
        sch.bind(sch.fuse(batch, *planes, head), "blockIdx.x")
    sch.bind(query, "threadIdx.y")
    sch.annotate(query, "pragma_auto_unroll_max_step", unroll)
    sch.annotate(query, "pragma_unroll_explicit", 0)

    lane, channel = _share(sch, output, lanes)
    _vectorize(sch, channel, spec)
    place(sch, "normalized", lane)
    _weighted_sum(sch, lane, spec)
    for name in ("inverse_sum", "sum_weights", "weights", "max_logit", "logits"):
        place(sch, name, query)
    _dot_product(sch, query, spec, lanes)
    place_tables(sch, spec, query)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    block = sch.get_sblock("summed")
    sch.decompose_reduction(block, loops_inside(sch, block, lane)[0])
    decisions.annotate(sch, output)


def _dot_product(sch: Schedule, query: LoopRV, spec: KernelSpec, lanes: int) -> None:
    """Compute one tap's dot product: a vector of channels in each lane, then across lanes."""
    taps = inner_loops(sch, sch.get_sblock("logits"), outer=query, always=("v_t",))["v_t"]
    _, tap = sch.split(taps, [None, spec.kernel_size[-1]])
    place(sch, "scores", tap)
    scaled = sch.get_sblock("query_scaled")
    # Only of this block: other blocks may read the same tensor, if the input is packed.
    loaded = sch.cache_read(scaled, 0, REGISTERS, [scaled])
    if spec.head_dim == 1:
        # compute_at makes no loop of one iteration, so there is none to share or to vectorize.
        place(sch, "key_tap", tap)
        place(sch, "query_scaled", query)
        sch.compute_at(loaded, query)
        return
    lane, channel = _share(sch, sch.get_sblock("scores"), lanes)
    sch.unroll(channel)
    _vectorize(sch, sch.get_loops(place(sch, "key_tap", lane))[-1], spec)
    # The query's own vector, once for all taps; its loop over lanes is a nest of its own.
    lane, channel = _share(sch, place(sch, "query_scaled", query), lanes)
    sch.unroll(channel)
    sch.compute_at(loaded, lane)
    _vectorize(sch, sch.get_loops(loaded)[-1], spec)


def _share(sch: Schedule, block: SBlockRV, lanes: int) -> tuple[LoopRV, LoopRV]:
    """Split the innermost loop of `block`, over channels, into (lanes, channels of a lane)."""
    channels = sch.get_loops(block)[-1]
    lane, channel = sch.split(channels, [lanes, extent(sch, channels) // lanes])
    sch.bind(lane, "threadIdx.x")
    return lane, channel


def _weighted_sum(sch: Schedule, lane: LoopRV, spec: KernelSpec) -> None:
    """Schedule the sum of weight times value over taps, each lane for its own channels."""
    block = place(sch, "summed", lane)
    taps, channel = order_sum(sch, spec, block, lane)
    if channel:
        sch.unroll(channel)
    block = place(sch, "value_tap", taps[-1])
    if channel:
        _vectorize(sch, sch.get_loops(block)[-1], spec)


def _vectorize(sch: Schedule, channel: LoopRV, spec: KernelSpec) -> None:
    """Move the channels of a lane in the widest loads and stores that their number allows."""
    width = load_width(extent(sch, channel), spec)
    if width > 1:
        sch.vectorize(sch.split(channel, [None, width])[1])
