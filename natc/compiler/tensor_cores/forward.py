"""The forward on tensor cores: each warp computes a tile of queries.

Scores stay in registers: a matrix product leaves them in the layout that the next product needs.
Queries, keys and values are loaded straight into that layout, through the multiprocessor's cache.
Warps share nothing, so none waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from natc.compiler.statements import Statements, call
from natc.compiler.tensor_cores.halo import Part
from natc.compiler.tensor_cores.kernel import (
    PRODUCTS,
    RESIDENT,
    SHORT,
    grid,
    warp_candidates,
    warps_of,
)
from natc.compiler.tensor_cores.logits import LOG2_E
from natc.compiler.tensor_cores.results import store_channels
from natc.compiler.tensor_cores.scores import each_part, finish, load_queries, products
from natc.compiler.tensor_cores.softmax import RunningSoftmax
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


class _State(RunningSoftmax):
    """A lane's running softmax, and each half's sums of values."""

    def __init__(self, warp: WarpTile) -> None:
        super().__init__(warp)
        self.blocks = warp.tile.value_blocks
        self.sums = [self.s.registers(f"output_{i}", n // 2) for i, n in enumerate(self.blocks)]

    def clear(self) -> None:
        """Reset the running softmax: largest logit -inf, total and sums 0."""
        super().clear()
        for sums in self.sums:
            self.s.fill(sums, 0.0)

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
        corrections = state.add(warp, scores)
        values = ValueSums(warp, part, value, packed_weights(warp, scores, f"natc_pack_{kind}"))
        if warp.tile.in_parts:
            state.correct(corrections)
        first = 0
        for sums, channels in zip(state.sums, state.blocks):
            add = values.add_exactly if exact else values.add
            add(sums, first, channels)
            first += channels

    each_part(warp, run)


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
