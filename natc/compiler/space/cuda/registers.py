"""Steps of schedules for GPU threads that share nothing: registers, wide loads, skipped taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from natc.compiler.space.decisions import Candidates, Decisions
from natc.compiler.space.loops import has_block, loops_inside, tables_of
from natc.compiler.space.skip import skip_unless
from natc.compiler.space.threads import spread
from natc.spec import KernelSpec
from natc.targets import Target

REGISTERS = "local"

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
WIDEST_LOAD = 16  # bytes that one thread loads at once
_FEWEST = 16  # channels of a part
_INDICES = ("batch_index", "head_index", "kv_head_index")


class Kept(NamedTuple):
    """Vectors that a thread loads once, in `loop`, if they have at most `most_bytes` bytes."""

    names: Sequence[str]
    loop: LoopRV
    most_bytes: int


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure; the first of each is the untuned schedule's.

    sums: the most channels whose sums one thread keeps. More channels are divided into parts, and
    weights are recomputed for each part. site_bytes: the longest vector of a site that a thread
    keeps; a longer one is read again for each tap.
    """
    return {"sums": (64, 32, 128, 256), "site_bytes": (128, 0, 256, 512)}


def one_thread_each(sch: Schedule, loops: Sequence[LoopRV], decisions: Decisions) -> LoopRV:
    """Give each iteration of some loops a thread; return the innermost of them."""
    spread(sch, loops, decisions.sample(sch, "threads", (128, 64, 256)))
    unroll = decisions.sample(sch, "unroll", (0, 16, 64))
    sch.annotate(loops[0], "pragma_auto_unroll_max_step", unroll)
    sch.annotate(loops[0], "pragma_unroll_explicit", 0)
    return loops[-1]


def place(sch: Schedule, block: SBlockRV | str, loop: LoopRV) -> SBlockRV:
    """Compute a stage inside a loop, with results in the thread's registers; return its block."""
    block = sch.get_sblock(block) if isinstance(block, str) else block
    sch.compute_at(block, loop)
    for index in range(len(sch.get(block).writes)):
        sch.set_scope(block, index, REGISTERS)
    return block


def place_tables(sch: Schedule, spec: KernelSpec, loop: LoopRV) -> None:
    """Keep the tables of windows, and the indices of batch and head, in registers."""
    for axis in range(spec.rank):
        for name in tables_of(sch, axis):
            place(sch, name, loop)
    for name in _INDICES:
        if has_block(sch, name):
            place(sch, name, loop)


def skip_taps(sch: Schedule, taps: Sequence[LoopRV]) -> None:
    """Skip taps without a pair; taps: the loops over taps, one for each axis."""
    for axis, loop in enumerate(taps):
        skip_unless(sch, loop, f"attended_{axis}_{REGISTERS}", (f"v_i{axis}", f"v_t{axis}"))


def load(
    sch: Schedule,
    spec: KernelSpec,
    block: SBlockRV,
    outer: LoopRV,
    vectors: Mapping[str, SBlockRV],
    kept: Kept | None = None,
) -> None:
    """Read the vectors of a block inside the loop `outer` in wide loads.

    vectors: stages that the block reads, by name. kept: the vectors to load only once, outside the
    block's loops.
    """
    loops = loops_inside(sch, block, outer)
    if not loops:
        for stage in vectors.values():
            place(sch, stage, outer)
        return
    channels = extent(sch, loops[-1])
    chunk, element = sch.split(loops[-1], [None, load_width(channels, spec)])
    sch.unroll(chunk)
    sch.unroll(element)
    for name, stage in vectors.items():
        whole = kept and name in kept.names and channels * BYTES[spec.dtype] <= kept.most_bytes
        place(sch, stage, kept.loop if kept and whole else chunk)
        vectorize(sch, sch.get_loops(stage)[-1], spec)


def vectorize(sch: Schedule, channel: LoopRV, spec: KernelSpec) -> None:
    """Move the channels of a loop in the widest loads and stores that their number allows."""
    width = load_width(extent(sch, channel), spec)
    if width > 1:
        chunk, element = sch.split(channel, [None, width])
        sch.unroll(chunk)
        sch.vectorize(element)


def unroll_inside(sch: Schedule, block: SBlockRV, outer: LoopRV) -> None:
    """Unroll the loops of a block inside a loop."""
    for loop in loops_inside(sch, block, outer):
        sch.unroll(loop)


def parts(channels: int, most: int) -> int:
    """Return the number of equal parts into which to divide channels: at most `most` in a part.

    Parts below _FEWEST channels are not used, even if a part then has more than `most`: weights
    are recomputed for each part, and would be most of the work.
    """
    numbers = [n for n in range(1, channels + 1) if n == 1 or _is_part(channels, n)]
    return next((n for n in numbers if channels // n <= most), numbers[-1])


def extent(sch: Schedule, loop: LoopRV) -> int:
    """Return the number of iterations of a loop over channels."""
    return int(sch.get(loop).extent)


def _is_part(channels: int, number: int) -> bool:
    return channels % number == 0 and channels // number >= _FEWEST


def load_width(channels: int, spec: KernelSpec) -> int:
    """Return the widest load, in channels, that divides `channels`."""
    width = WIDEST_LOAD // BYTES[spec.dtype]
    while channels % width:
        width //= 2
    return width
