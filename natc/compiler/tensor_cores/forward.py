"""The kernel for tensor cores: fused neighborhood attention, forward, a tile of queries a warp.

Scores stay in registers: those of a matrix product are laid out as the next product takes them.
Queries, keys and values are loaded from memory through the cache of the multiprocessor, as
products take them; nothing is shared, so no warp waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tvm import tirx

from natc.compiler.tensor_cores.halo import Part
from natc.compiler.tensor_cores.kernel import (
    PRODUCTS,
    RESIDENT,
    SHORT,
    WARPS_0,
    WARPS_1,
    grid,
    warps_of,
)
from natc.compiler.tensor_cores.place import WarpTile
from natc.compiler.tensor_cores.results import store_channels
from natc.compiler.tensor_cores.scores import LOG2_E, each_part, finish, load_queries, products
from natc.compiler.tensor_cores.statements import Statements, call
from natc.compiler.tensor_cores.tile import HALF, Tile, is_wide
from natc.compiler.tensor_cores.values import ValueSums, any_not_finite, packed_weights
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
    products: Sequence[int] = (16, 8, 12) if small and spec.rank == 2 else (8, 16, 12)
    if is_wide(spec) and spec.rank > 1:
        # With 4, hardly any need memory; but sums are corrected twice as often, which costs more.
        products = (8, 4, 12)
    return {**found, PRODUCTS: products, RESIDENT: (8, 12, 16)}


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of a forward operation.

    p: the function's parameters by name. numbers: those of `numbers`, one for each name.
    """
    place = WarpTile(Statements(), p, Tile(spec, *warps_of(numbers), numbers[PRODUCTS]))
    with grid(place, numbers[RESIDENT]):
        place.attend()
        _attention(place)
    return place.s.statement()


class _State:
    """What a lane sums up: for each half, the largest logit, the sum, and of values the sums."""

    def __init__(self, place: WarpTile) -> None:
        self.s, self.blocks = place.s, place.tile.value_blocks
        self.largest = self.s.registers("largest", 2)
        self.total = self.s.registers("total", 2)
        self.sums = [self.s.registers(f"output_{i}", n // 2) for i, n in enumerate(self.blocks)]

    def clear(self) -> None:
        """Set them to what they are of no keys."""
        s = self.s
        with s.unrolled("half", 2) as half:
            s.store(self.largest, half, tirx.const(-_INFINITY, "float32"))
            # Adding to -0 changes nothing; compilers leave it out.
            s.store(self.total, half, tirx.const(-0.0, "float32"))
        for sums, channels in zip(self.sums, self.blocks):
            with s.unrolled("i", channels // 2) as i:
                s.store(sums, i, tirx.const(0.0, "float32"))

    def correct(self, corrections: Any) -> None:
        """Multiply sums of values by what each half has."""
        s = self.s
        for sums, channels in zip(self.sums, self.blocks):
            for half in range(2):
                with s.unrolled("v", channels // HALF) as v, s.unrolled("e", 2) as e:
                    index = v * 4 + 2 * half + e
                    s.store(sums, index, sums[index] * corrections[half])


def _attention(place: WarpTile) -> None:
    """Attend; again, and exactly, where some sum is not finite.

    Masks are added, and a value beside a query's window has weight 0: of what is not finite, both
    make NaN. The second time has the rows of keys one by one, and finds out anew whatever it
    needs, so that it takes no registers of the first.
    """
    s, state = place.s, _State(place)
    _sum_up(place, state, exact=False)
    with s.when(any_not_finite(place, state.sums, state.blocks) != 0):
        again = place.again(replace(place.tile, most_products=1))
        again.attend()
        _sum_up(again, state, exact=True)
    _finish(place, state)


def _sum_up(place: WarpTile, state: _State, *, exact: bool) -> None:
    """Sum up the values of all keys."""
    s, p, kind = place.s, place.p, SHORT[place.spec.dtype]
    query, key, value = place.tensors()
    queries = load_queries(place, query, shuffled=place.tile.in_parts and not place.tile.is_wide)
    scale = s.let("scale_2", p["scale"] * tirx.const(LOG2_E, "float32"))
    state.clear()

    def run(part: Part) -> None:
        scores = products(place, part, queries, key)
        finish(place, part, scores, p.get("rpb"), scale, exact=exact)
        corrections = _softmax(place, scores, state)
        values = ValueSums(place, part, value, packed_weights(place, scores, f"natc_pack_{kind}"))
        if place.tile.in_parts:
            state.correct(corrections)
        first = 0
        for sums, channels in zip(state.sums, state.blocks):
            add = values.add_exactly if exact else values.add
            add(sums, first, channels)
            first += channels

    each_part(place, run)


def _softmax(place: WarpTile, scores: Any, state: _State) -> Any:
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


def _finish(place: WarpTile, state: _State) -> None:
    """Divide by the sums of weights and store the results."""
    s, output = place.s, place.output()
    for half in range(2):
        total = s.let(f"total_{half}", call("float32", "natc_row_sum", state.total[half]))
        inverse = s.let(f"inverse_{half}", call("float32", "natc_inverse", total))
        with s.when(place.has_query(half)):
            token = s.let("token", place.token(place.query_index[half]))
            store_channels(place, output, state.sums, half, token, inverse)
            if "lse" in place.p:
                with s.when(place.column == 0):
                    _store_lse(place, token, state.largest[half], total)


def _store_lse(place: WarpTile, token: Any, largest: Any, total: Any) -> None:
    """Store the logsumexp; inf where that is the largest logit, for `total` is NaN then."""
    s, lse = place.s, place.p["lse"]
    minus, plus = (tirx.const(x, "float32") for x in (-_INFINITY, _INFINITY))
    base = tirx.Select(largest == minus, tirx.const(0.0, "float32"), largest)
    found = base * tirx.const(math.log(2.0), "float32") + tirx.log(total)
    zeros = [0] * (len(lse.ty.shape) - 1)
    value = tirx.Select(largest == plus, largest, found)
    s.add(tirx.BufferStore(lse, value, [*zeros, token * place.heads + place.head]))
