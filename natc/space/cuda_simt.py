"""Design space for CUDA cores: a thread, or a few lanes of a warp, computes one query of one head.

A block of threads covers a tile of queries of one head, so that its keys and values stay in the
L1 cache. The lanes of a query share its channels: each loads one vector of every key and value,
and a dot product is added up by warp shuffles.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from natc.space.decisions import Candidates, Decisions
from natc.space.loops import depth, has_block, inner_loops
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "cuda_simt"
VERSION = 1

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_WIDEST_LOAD = 16  # bytes that one thread loads at once
_WARP = 32


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    # A power of two that divides a warp, or the shuffles of a query would cross warps.
    shares = [n for n in (1, 2, 4, 8, 16, 32) if spec.head_dim % n == 0]
    widest = [n for n in shares if spec.head_dim // n * _BYTES[spec.dtype] >= _WIDEST_LOAD]
    lanes = tuple(reversed(widest)) or (1,)
    return {"lanes": lanes}


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `natc.te.forward`; ScheduleError for a decision out of bounds."""
    lanes = decisions.choose("lanes", structure(spec, target)["lanes"])
    channels = spec.head_dim // lanes
    tile_h = decisions.sample(sch, "tile_h", (4, 1, 2, 8))
    tile_w = decisions.sample(sch, "tile_w", (8, 4, 16))
    unroll = decisions.sample(sch, "unroll", (64, 0, 16, 512))

    output = sch.get_sblock("output")
    batch, row, column, head, channel = sch.get_loops(output)
    row, row_in = sch.split(row, [None, tile_h])
    column, column_in = sch.split(column, [None, tile_w])
    lane, channel = sch.split(channel, [lanes, channels])
    sch.reorder(batch, head, row, column, row_in, column_in, lane, channel)
    # One grid axis a loop: no division to find the tile, but for heads in the widest axis.
    sch.bind(sch.fuse(batch, head), "blockIdx.x")
    sch.bind(row, "blockIdx.y")
    sch.bind(column, "blockIdx.z")
    query = sch.fuse(row_in, column_in)
    sch.bind(query, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.annotate(query, "pragma_auto_unroll_max_step", unroll)
    sch.annotate(query, "pragma_unroll_explicit", 0)
    if has_block(sch, "lse"):
        sch.reverse_compute_at(sch.get_sblock("lse"), query)
