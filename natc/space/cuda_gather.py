"""Schedules for CUDA cores of every operation but the forward: a thread for each site.

A thread walks over the taps of its site, a query or a key of one head. It moves vectors in the
widest loads that their channels allow and shares nothing with other threads: no shared memory, no
shuffles, no atomics. Sites are numbered through, so that the one grid axis they need is the one
that may be long. Taps without a pair are skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.space.decisions import Candidates, Decisions
from natc.space.loops import (
    TAP_AXES,
    blocks_named,
    depth,
    has_block,
    inner_loops,
    tables_of,
)
from natc.space.skip import skip_unless
from natc.space.threads import spread
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "cuda_gather"
VERSION = 1

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_WIDEST_LOAD = 16  # bytes that one thread loads at once
_REGISTERS = "local"
_FEWEST = 16  # channels of a part
_INDICES = ("batch_index", "kv_head_index", "head_index")
_OF_PARTIAL = ("v_c", "v_h", "v_r0", "v_r1", "v_r2")
# Tensors with channels.
_OF_SITE = {False: ("query", "d_output"), True: ("key", "value")}  # by whether sites are keys
_VECTORS = ("query", "key", "value", "d_output", "output", "vector")


_Vectors = dict[str, dict[str, SBlockRV]]


class _Kept(NamedTuple):
    """Vectors that a thread loads once, in a loop: those of some tensors, if they are short."""

    names: Collection[str]
    loop: LoopRV
    most_bytes: int


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's."""
    # sums: the most channels whose sums one thread keeps. Where there are more, several threads
    # share a site's channels, and each computes its weights again.
    # site_bytes: the longest vector of a site that a thread keeps; parts of a longer one are read
    # again for each tap.
    return {"sums": (64, 32, 128, 256), "site_bytes": (128, 0, 256, 512)}


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of an operation; ScheduleError for a decision out of bounds."""
    choices = {n: decisions.choose(n, values) for n, values in structure(spec, target).items()}
    # The vectors of sites and taps become stages anew, one for each block that reads them.
    for name in blocks_named(sch, lambda name: name.endswith(("_site", "_tap"))):
        sch.compute_inline(sch.get_sblock(name))
    vectors = {
        name: _staged_vectors(sch, sch.get_sblock(name))
        for name in ("scores", "d_weights", "summed")
        if has_block(sch, name)
    }
    output = sch.get_sblock("output")
    stored = sch.cache_write(output, 0, _REGISTERS)
    if has_block(sch, "batch_of_query"):
        _chunks(sch, spec, decisions, vectors, output, stored)
    elif has_block(sch, "weight"):
        _sums(sch, spec, decisions, choices, vectors, output, stored)
    else:
        _scalars(sch, spec, decisions, vectors, output, stored)
    decisions.annotate(sch, stored)


def _sums(
    sch: Schedule,
    spec: KernelSpec,
    decisions: Decisions,
    choices: dict[str, int],
    vectors: _Vectors,
    output: SBlockRV,
    stored: SBlockRV,
) -> None:
    """A thread sums up weight times vector over the taps of a site."""
    *site, channel = sch.get_loops(stored)
    parts = _parts(_extent(sch, channel), choices["sums"])
    part, channel = sch.split(channel, [parts, None])
    _vectorize(sch, channel, spec)
    thread = part
    _spread(sch, [*site, part], decisions)
    _place(sch, output, thread)
    _unroll_below(sch, output, thread)

    summed = _place(sch, sch.get_sblock("summed"), thread)
    loops = inner_loops(sch, summed, outer=thread)
    taps = {axis: loops[axis] for axis in TAP_AXES if axis in loops}
    tap = list(taps.values())[-1]
    if "v_d" in loops:
        sch.reorder(*taps.values(), loops["v_d"])
    _place(sch, sch.get_sblock("weight"), tap)
    for name in vectors:
        if name != "summed":
            _place(sch, sch.get_sblock(name), tap)
    _place_tables(sch, spec, thread)
    of_site = _OF_SITE[has_block(sch, "query_0")]
    kept = _Kept(of_site, thread, choices["site_bytes"])
    for name, found in vectors.items():
        _load(sch, spec, sch.get_sblock(name), tap, found, kept)
    # Last, since primitives refuse loops that hold a block with its initialization apart.
    sch.decompose_reduction(summed, next(iter(taps.values())))
    for axis, loop in taps.items():
        skip_unless(sch, loop, f"attended_{axis[-1]}_{_REGISTERS}")


def _scalars(
    sch: Schedule,
    spec: KernelSpec,
    decisions: Decisions,
    vectors: _Vectors,
    output: SBlockRV,
    stored: SBlockRV,
) -> None:
    """A thread computes one dot product, of a site or of a site and its tap."""
    loops = sch.get_loops(stored)
    _spread(sch, loops, decisions)
    thread = loops[-1]
    _place(sch, output, thread)
    for name in vectors:
        _place(sch, sch.get_sblock(name), thread)
    _place_tables(sch, spec, thread)
    for name, found in vectors.items():
        _load(sch, spec, sch.get_sblock(name), thread, found)


def _chunks(
    sch: Schedule,
    spec: KernelSpec,
    decisions: Decisions,
    vectors: _Vectors,
    output: SBlockRV,
    stored: SBlockRV,
) -> None:
    """A thread sums up, for one offset, over the queries of a chunk."""
    loops = sch.get_loops(stored)
    _spread(sch, loops, decisions)
    thread = loops[-1]
    _place(sch, output, thread)
    (query,) = inner_loops(sch, output, outer=thread, fixed=_OF_PARTIAL).values()
    # Loops of one iteration hold the conditions, which need what is computed for each query.
    query, *conditions = sch.split(query, [None, *[1] * spec.rank])
    _place(sch, sch.get_sblock("weight"), conditions[-1])
    for name in vectors:
        _place(sch, sch.get_sblock(name), conditions[-1])
    _place_tables(sch, spec, query)
    _place(sch, sch.get_sblock("batch_of_query"), query)
    for name, found in vectors.items():
        _load(sch, spec, sch.get_sblock(name), conditions[-1], found)
    sch.decompose_reduction(output, query)
    for axis, loop in enumerate(conditions):
        skip_unless(sch, loop, f"attended_{axis}_{_REGISTERS}")


def _spread(sch: Schedule, loops: Sequence[LoopRV], decisions: Decisions) -> None:
    """Give each iteration of some loops a thread."""
    spread(sch, loops, decisions.sample(sch, "threads", (128, 64, 256)))
    unroll = decisions.sample(sch, "unroll", (0, 16, 64))
    sch.annotate(loops[0], "pragma_auto_unroll_max_step", unroll)
    sch.annotate(loops[0], "pragma_unroll_explicit", 0)


def _staged_vectors(sch: Schedule, block: SBlockRV) -> dict[str, SBlockRV]:
    """Make a stage of each vector that a block reads; by the name of its tensor."""
    reads = [str(region.source.name) for region in sch.get(block).reads]
    # In reverse: a stage's own reads may come before those that follow it.
    return {n: sch.reindex(block, ("read", i)) for i, n in enumerate(reads) if n in _VECTORS}


def _load(
    sch: Schedule,
    spec: KernelSpec,
    block: SBlockRV,
    outer: LoopRV,
    vectors: dict[str, SBlockRV],
    kept: _Kept | None = None,
) -> None:
    """Read the vectors of a block, which is inside `outer`, in wide loads where they are needed.

    Comes after the tables. The stages of vectors do not say that they read them, so that a table
    would be put behind a vector.
    """
    loops = sch.get_loops(block)[depth(sch, sch.get_loops(block), outer) + 1 :]
    if not loops:
        for stage in vectors.values():
            _place(sch, stage, outer)
        return
    extent = _extent(sch, loops[-1])
    chunk, element = sch.split(loops[-1], [None, _width(extent, spec)])
    sch.unroll(chunk)
    sch.unroll(element)
    for name, stage in vectors.items():
        whole = kept and name in kept.names and extent * _BYTES[spec.dtype] <= kept.most_bytes
        _place(sch, stage, kept.loop if kept and whole else chunk)
        _vectorize(sch, sch.get_loops(stage)[-1], spec)


def _place_tables(sch: Schedule, spec: KernelSpec, loop: LoopRV) -> None:
    """Keep the tables of windows, and the indices of batch and head, in registers."""
    for axis in range(spec.rank):
        for name in tables_of(sch, axis):
            _place(sch, sch.get_sblock(name), loop)
    for name in _INDICES:
        if has_block(sch, name):
            _place(sch, sch.get_sblock(name), loop)


def _place(sch: Schedule, block: SBlockRV, loop: LoopRV) -> SBlockRV:
    """Compute a stage inside a loop, its result in the thread's registers; return its block."""
    sch.compute_at(block, loop)
    sch.set_scope(block, 0, _REGISTERS)
    return block


def _unroll_below(sch: Schedule, block: SBlockRV, loop: LoopRV) -> None:
    loops = sch.get_loops(block)
    for found in loops[depth(sch, loops, loop) + 1 :]:
        sch.unroll(found)


def _parts(channels: int, most: int) -> int:
    """Return into how many equal parts to divide channels, so that one has at most `most`.

    No part has fewer than _FEWEST, even if then each has more: work on weights is repeated in every
    part, and a prime number of channels has no others.
    """
    parts = [n for n in range(1, channels + 1) if n == 1 or _is_part(channels, n)]
    return next((n for n in parts if channels // n <= most), parts[-1])


def _is_part(channels: int, parts: int) -> bool:
    return channels % parts == 0 and channels // parts >= _FEWEST


def _vectorize(sch: Schedule, channel: LoopRV, spec: KernelSpec) -> None:
    """Move the channels of a loop in the widest loads and stores that their number allows."""
    width = _width(_extent(sch, channel), spec)
    if width > 1:
        chunk, element = sch.split(channel, [None, width])
        sch.unroll(chunk)
        sch.vectorize(element)


def _width(channels: int, spec: KernelSpec) -> int:
    width = _WIDEST_LOAD // _BYTES[spec.dtype]
    while channels % width:
        width //= 2
    return width


def _extent(sch: Schedule, loop: LoopRV) -> int:
    return int(sch.get(loop).extent)
