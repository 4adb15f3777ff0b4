"""The forward on tensor cores: each warp computes a tile of queries.

Scores stay in registers: a matrix product leaves them in the layout that the next product needs.
Queries, keys and values are loaded straight into that layout, through the multiprocessor's cache.
Warps share nothing, so none waits for another.
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
    grid,
    warp_candidates,
    warps_of,
)
from natc.compiler.tensor_cores.results import store_channels
from natc.compiler.tensor_cores.scores import LOG2_E, each_part, finish, load_queries, products
from natc.compiler.tensor_cores.statements import Statements, call
from natc.compiler.tensor_cores.tile import HALF, Tile, is_wide
from natc.compiler.tensor_cores.values import ValueSums, any_not_finite, packed_weights
from natc.compiler.tensor_cores.warp_tile import WarpTile
from natc.spec import KernelSpec

_INFINITY = math.inf


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Adjacent warps of a block, which share keys and values through the cache; products whose scores
    a lane keeps at once; warps that one multiprocessor must be able to hold.
    """
    small = max(spec.head_dim, spec.value_dim) <= 32 and all(k <= 7 for k in spec.kernel_size)
    # First the candidates with which the compiler spills no registers, if there are any.
    products: Sequence[int] = (16, 8, 12) if small and spec.rank == 2 else (8, 16, 12)
    if is_wide(spec) and spec.rank > 1:
        # With 4 hardly any kernel spills, but sums are rescaled twice as often, which costs more.
        products = (8, 4, 12)
    return {**warp_candidates(spec), PRODUCTS: products, RESIDENT: (8, 12, 16)}


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of a forward (`TensorCoreKernel`)."""
    warp = WarpTile(Statements(), p, Tile(spec, *warps_of(numbers), numbers[PRODUCTS]))
    with grid(warp, numbers[RESIDENT]):
        warp.attend()
        _attention(warp)
    return warp.s.statement()


class _State:
    """A lane's running softmax: each half's largest logit and total, and its sums of values."""

    def __init__(self, warp: WarpTile) -> None:
        self.s, self.blocks = warp.s, warp.tile.value_blocks
        self.largest = self.s.registers("largest", 2)
        self.total = self.s.registers("total", 2)
        self.sums = [self.s.registers(f"output_{i}", n // 2) for i, n in enumerate(self.blocks)]

    def clear(self) -> None:
        """Reset the running softmax: largest logit -inf, total and sums 0."""
        s = self.s
        with s.unrolled("half", 2) as half:
            s.store(self.largest, half, tirx.const(-_INFINITY, "float32"))
            # Compilers leave out an addition to -0, which changes nothing.
            s.store(self.total, half, tirx.const(-0.0, "float32"))
        for sums in self.sums:
            s.fill(sums, 0.0)

    def correct(self, corrections: Any) -> None:
        """Multiply each half's sums of values by its entry of `corrections`."""
        s = self.s
        for sums, channels in zip(self.sums, self.blocks):
            for half in range(2):
                with s.unrolled("v", channels // HALF) as v, s.unrolled("e", 2) as e:
                    index = v * 4 + 2 * half + e
                    s.store(sums, index, sums[index] * corrections[half])


def _attention(warp: WarpTile) -> None:
    """Compute and store the tile's results; if a sum is not finite, compute it again exactly.

    The fast pass adds masks to logits, and gives a value outside a query's window the weight 0:
    both turn a number that is not finite into NaN. The exact pass takes one row of keys at a time,
    and recomputes all its indices, so that the fast pass keeps no registers for it.
    """
    s, state = warp.s, _State(warp)
    _sum_up(warp, state, exact=False)
    with s.when(any_not_finite(warp, state.sums, state.blocks) != 0):
        exact_warp = warp.with_new_starts(replace(warp.tile, most_products=1))
        exact_warp.attend()
        _sum_up(exact_warp, state, exact=True)
    _finish(warp, state)


def _sum_up(warp: WarpTile, state: _State, *, exact: bool) -> None:
    """Add probability times value over all parts of the halo to `state`."""
    s, p, kind = warp.s, warp.p, SHORT[warp.spec.dtype]
    query, key, value = warp.tensors()
    queries = load_queries(warp, query, shuffled=warp.tile.in_parts and not warp.tile.is_wide)
    scale = s.let("scale_2", p["scale"] * tirx.const(LOG2_E, "float32"))
    state.clear()

    def run(part: Part) -> None:
        scores = products(warp, part, queries, key)
        finish(warp, part, scores, p.get("rpb"), scale, exact=exact)
        corrections = _softmax(warp, scores, state)
        values = ValueSums(warp, part, value, packed_weights(warp, scores, f"natc_pack_{kind}"))
        if warp.tile.in_parts:
            state.correct(corrections)
        first = 0
        for sums, channels in zip(state.sums, state.blocks):
            add = values.add_exactly if exact else values.add
            add(sums, first, channels)
            first += channels

    each_part(warp, run)


def _softmax(warp: WarpTile, scores: Any, state: _State) -> Any:
    """Turn logits into unnormalized probabilities; return each half's factor for earlier sums."""
    s, tile = warp.s, warp.tile
    zero, minus = (tirx.const(x, "float32") for x in (0.0, -_INFINITY))

    @contextmanager
    def each() -> Iterator[tuple[Any, Any, Any]]:
        """Run the block for every score, given (product, half, index of the score)."""
        with (
            s.unrolled("n", tile.products) as n,
            s.unrolled("half", 2) as half,
            s.unrolled("e", 2) as e,
        ):
            yield n, half, n * 4 + 2 * half + e

    part_largest = s.registers("found", 2)
    with s.unrolled("half", 2) as half:
        s.store(part_largest, half, minus)
    with each() as (_, half, i):
        s.store(part_largest, half, tirx.max(part_largest[half], scores[i]))
    base, corrections = s.registers("base", 2), s.registers("corrections", 2)
    for half in range(2):
        largest = s.let(f"largest_{half}", call("float32", "natc_row_max", part_largest[half]))
        if tile.in_parts:
            largest = s.let(f"now_{half}", tirx.max(largest, state.largest[half]))
        # If all logits are -inf, subtract nothing: their exponentials are 0 already.
        s.store(base, half, tirx.Select(largest == minus, zero, largest))
        if tile.in_parts:
            # 0 in the first part, where the largest logit so far is -inf.
            factor = call("float32", "natc_exp2", state.largest[half] - base[half])
            s.store(corrections, half, factor)
            s.store(state.total, half, state.total[half] * corrections[half])
        s.store(state.largest, half, largest)
    with each() as (n, half, i):
        weight = call("float32", "natc_exp2", scores[i] - base[half])
        if tile.has_rows and tile.is_whole:
            # Only the second half attends to the last row.
            attends = tirx.Or(half != 0, n < (tile.rows - 1) * tile.columns)
            weight = tirx.Select(attends, weight, zero)
        s.store(scores, i, weight)
        s.store(state.total, half, state.total[half] + scores[i])
    return corrections


def _finish(warp: WarpTile, state: _State) -> None:
    """Divide the sums of values by the total and store the results."""
    s, output = warp.s, warp.output()
    for half in range(2):
        total = s.let(f"total_{half}", call("float32", "natc_row_sum", state.total[half]))
        inverse = s.let(f"inverse_{half}", call("float32", "natc_inverse", total))
        with s.when(warp.has_query(half)):
            token = s.let("token", warp.token(warp.query_index[half]))
            store_channels(warp, output, state.sums, half, token, inverse)
            if "lse" in warp.p:
                with s.when(warp.column == 0):
                    _store_lse(warp, token, state.largest[half], total)


def _store_lse(warp: WarpTile, token: Any, largest: Any, total: Any) -> None:
    """Store the logsumexp, or inf if the largest logit is inf (`total` is NaN then)."""
    minus, plus = (tirx.const(x, "float32") for x in (-_INFINITY, _INFINITY))
    base = tirx.Select(largest == minus, tirx.const(0.0, "float32"), largest)
    finite = base * tirx.const(math.log(2.0), "float32") + tirx.log(total)
    value = tirx.Select(largest == plus, largest, finite)
    warp.s.store(warp.p["lse"], token * warp.heads + warp.head, value)
