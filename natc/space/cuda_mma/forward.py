"""The kernel for tensor cores: fused neighborhood attention, forward, a tile of queries a warp.

Scores stay in registers: those of a matrix product are laid out as the next product takes them.
Queries, keys and values are loaded from memory through the cache of the multiprocessor, as
products take them; nothing is shared, so no warp waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from natc.space.cuda_mma.kernel import (
    PRODUCTS,
    RESIDENT,
    SHORT,
    WARPS_0,
    WARPS_1,
    grid,
    warps_of,
)
from natc.space.cuda_mma.place import Place
from natc.space.cuda_mma.results import store_channels
from natc.space.cuda_mma.scores import LOG2_E, Part, each_part, finish, load_queries, products
from natc.space.cuda_mma.statements import Statements, call
from natc.space.cuda_mma.tile import HALF, Tile
from natc.space.cuda_mma.values import Sums, packed_weights
from natc.spec import KernelSpec

_INFINITY = math.inf


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Warps of a block side by side, which share keys and values through the cache; products whose
    scores a lane keeps at once; warps of a multiprocessor for whose registers there must be room.
    """
    small = max(spec.head_dim, spec.value_dim) <= 32 and all(k <= 7 for k in spec.kernel_size)
    found: dict[str, Sequence[int]] = {} if spec.rank == 1 else {WARPS_0: (4, 2, 1)}
    found[WARPS_1] = (4, 2, 8, 1) if spec.rank == 1 else (1, 2, 4)
    # The first are those with which compilers need no memory for registers, as far as there are.
    products = (16, 8, 12) if small and spec.rank == 2 else (8, 16, 12)
    return {**found, PRODUCTS: products, RESIDENT: (8, 12, 16)}


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of a forward operation.

    p: the function's parameters by name. numbers: those of `numbers`, one for each name.
    """
    place = Place(Statements(), p, Tile(spec, *warps_of(numbers), numbers[PRODUCTS]))
    with grid(place, numbers[RESIDENT]):
        place.attend()
        _attention(place)
    return place.s.statement()


class _State:
    """What a lane sums up: for each half, the largest logit, the sum, and of values the sums."""

    def __init__(self, place: Place) -> None:
        s = place.s
        self.largest = s.registers("largest", 2)
        self.total = s.registers("total", 2)
        self.sums = [
            s.registers(f"output_{i}", n // 2) for i, n in enumerate(place.tile.value_blocks)
        ]


def _attention(place: Place) -> None:
    s, p, tile, spec = place.s, place.p, place.tile, place.spec
    query, key, value = place.tensors()
    queries = load_queries(place, query)
    scale = s.let("scale_2", p["scale"] * tirx.const(LOG2_E, "float32"))
    state = _State(place)
    with s.unrolled("half", 2) as half:
        s.store(state.largest, half, tirx.const(-_INFINITY, "float32"))
        s.store(state.total, half, tirx.const(0.0, "float32"))
    for sums, channels in zip(state.sums, tile.value_blocks):
        with s.unrolled("i", channels // 2) as i:
            s.store(sums, i, tirx.const(0.0, "float32"))

    def run(part: Part) -> None:
        kind = SHORT[spec.dtype]
        scores = products(place, part, queries, key, f"natc_mma_{kind}")
        finish(place, part, scores, p.get("rpb"), scale)
        corrections = _softmax(place, scores, state)
        words = packed_weights(place, scores, f"natc_pack_{kind}")
        first = 0
        for sums, channels in zip(state.sums, tile.value_blocks):
            added = Sums(place, part, value).add(words, first, channels)
            for half in range(2):
                with s.unrolled("v", channels // HALF) as v, s.unrolled("e", 2) as e:
                    index = v * 4 + 2 * half + e
                    before = sums[index] * corrections[half] if tile.in_parts else sums[index]
                    s.store(sums, index, before + added[index])
            first += channels

    each_part(place, run)
    _finish(place, state)


def _softmax(place: Place, scores: Any, state: _State) -> Any:
    """Turn logits into weights; return, for each half, what corrects earlier sums."""
    s, tile = place.s, place.tile
    zero, minus = (tirx.const(x, "float32") for x in (0.0, -_INFINITY))

    @contextmanager
    def each() -> Iterator[tuple[Any, Any, Any]]:
        """Do the block for every score: its product, its half, its index."""
        with (
            s.unrolled("n", tile.products) as n,
            s.unrolled("half", 2) as half,
            s.unrolled("e", 2) as e,
        ):
            yield n, half, n * 4 + 2 * half + e

    found = s.registers("found", 2)
    with s.unrolled("half", 2) as half:
        s.store(found, half, minus)
    with each() as (_, half, i):
        s.store(found, half, tirx.max(found[half], scores[i]))
    base, corrections = s.registers("base", 2), s.registers("corrections", 2)
    for half in range(2):
        largest = s.let(f"largest_{half}", call("float32", "natc_row_max", found[half]))
        if tile.in_parts:
            largest = s.let(f"now_{half}", tirx.max(largest, state.largest[half]))
        # Of logits that are all -inf, nothing is taken: their weights are 0.
        s.store(base, half, tirx.Select(largest == minus, zero, largest))
        if tile.in_parts:
            # 0 where nothing was before.
            factor = call("float32", "natc_exp2", state.largest[half] - base[half])
            s.store(corrections, half, factor)
            s.store(state.total, half, state.total[half] * corrections[half])
        s.store(state.largest, half, largest)
    with each() as (n, half, i):
        weight = call("float32", "natc_exp2", scores[i] - base[half])
        if tile.has_rows and tile.is_whole:
            # The last row is the second half's alone.
            others = tirx.Or(half != 0, n < (tile.rows - 1) * tile.columns)
            weight = tirx.Select(others, weight, zero)
        s.store(scores, i, weight)
        s.store(state.total, half, state.total[half] + scores[i])
    return corrections


def _finish(place: Place, state: _State) -> None:
    """Divide by the sums of weights and store the results."""
    s, output = place.s, place.output()
    for half in range(2):
        total = s.let(f"total_{half}", call("float32", "natc_row_sum", state.total[half]))
        inverse = s.let(f"inverse_{half}", tirx.const(1.0, "float32") / total)
        with s.when(place.has_query(half)):
            token = s.let("token", place.token(place.query_index[half]))
            store_channels(place, output, state.sums, half, token, inverse)
            if "lse" in place.p:
                with s.when(place.column == 0):
                    _store_lse(place, token, state.largest[half], total)


def _store_lse(place: Place, token: Any, largest: Any, total: Any) -> None:
    """Store the logsumexp; inf where that is the largest logit, for `total` is NaN then."""
    s, lse = place.s, place.p["lse"]
    minus, plus = (tirx.const(x, "float32") for x in (-_INFINITY, _INFINITY))
    base = tirx.Select(largest == minus, tirx.const(0.0, "float32"), largest)
    found = base * tirx.const(math.log(2.0), "float32") + tirx.log(total)
    zeros = [0] * (len(lse.ty.shape) - 1)
    value = tirx.Select(largest == plus, largest, found)
    s.add(tirx.BufferStore(lse, value, [*zeros, token * place.heads + place.head]))
