"""The gradient of the query on tensor cores: each warp computes a tile of queries.

As in the forward, logits stay in registers. The logsumexp is an input, so that no sum has to be
rescaled, and a lane keeps few logits at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from natc.compiler.statements import Statements, call
from natc.compiler.tensor_cores.d_scores import KeyStep, LogitGradients
from natc.compiler.tensor_cores.halo import Part
from natc.compiler.tensor_cores.kernel import RESIDENT, ROWS, grid, warp_candidates, warps_of
from natc.compiler.tensor_cores.results import store_channels
from natc.compiler.tensor_cores.scores import each_part
from natc.compiler.tensor_cores.tile import HALF, Tile, channel_blocks
from natc.compiler.tensor_cores.values import Pairs, any_not_finite, multiply
from natc.compiler.tensor_cores.warp_tile import WarpTile
from natc.spec import KernelSpec


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Adjacent warps of a block, which share keys and values through the cache; rows of keys in a
    part; warps that one multiprocessor must be able to hold.
    """
    wide, columns = max(spec.head_dim, spec.value_dim), Tile(spec, 1, 1, 0).columns
    # First the candidates with which the compiler spills no registers, if there are any.
    fits = spec.rank < 3 and (
        (wide <= 32 and columns <= 3) or (wide <= 64 and columns <= 2 and not spec.rpb)
    )
    resident = (12, 8, 16) if fits else (8, 12, 16)
    candidates = warp_candidates(spec)
    if spec.rank > 1:
        candidates[ROWS] = (2, 1, 4) if wide <= 32 and columns <= 2 else (1, 2, 4)
    return {**candidates, RESIDENT: resident}


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of `d_query` (`TensorCoreKernel`)."""
    tile = Tile(spec, *warps_of(numbers), 0)
    tile = replace(tile, most_products=numbers.get(ROWS, 1) * tile.columns)
    warp = WarpTile(Statements(), p, tile)
    s = warp.s
    with grid(warp, numbers[RESIDENT]):
        warp.attend()
        not_finite = _Gradient(warp).compute()
        # A key outside a query's window has weight 0, and 0 times infinity is NaN: then each query
        # is computed alone.
        with s.when(not_finite), s.loop("query", 2 * HALF) as query:
            exact_warp = warp.recomputed(replace(tile, most_products=1))
            exact_warp.attend()
            _Gradient(exact_warp, query).compute()
    return s.statement()


class _Gradient:
    """The gradients of a tile's queries.

    alone: the number of a query in the tile: compute only its gradient, and skip keys outside its
    window. None computes all of them.
    """

    def __init__(self, warp: WarpTile, alone: Any | None = None) -> None:
        self.warp, self.alone = warp, alone
        self.logits = LogitGradients(warp, rounded=True, shuffled=warp.tile.in_parts)
        self.result = warp.query_tensor("output", warp.spec.head_dim)
        self.blocks = channel_blocks(warp.spec.head_dim)
        s = warp.s
        self.sums = [s.registers(f"sums_{i}", n // 2) for i, n in enumerate(self.blocks)]

    def compute(self) -> Any:
        """Compute and store the gradients; return whether any sum of a lane is not finite."""
        s = self.warp.s
        for sums in self.sums:
            s.fill(sums, 0.0)
        each_part(self.warp, self._part)
        not_finite = None
        if self.alone is None:
            checked = any_not_finite(self.warp, self.sums, self.blocks)
            not_finite = s.let("not_finite", checked) != 0
        self._store()
        return not_finite

    def _part(self, part: Part) -> None:
        """Add gradient of the logit times key, for the keys of a part."""
        warp, key = self.warp, self.logits.key
        pairs = Pairs(part, key)
        with self.logits.steps(part) as step:
            weights, first = step.words(), 0
            for sums, channels in zip(self.sums, self.blocks):
                number = channels // HALF // 2
                keys = pairs.load(step.number, first, channels, range(number))
                first += channels
                if self.alone is not None:
                    self._clear_outside(step, keys, number, self.alone)
                for word in range(number):
                    multiply(warp, sums, word, weights, keys, word, number)

    def _clear_outside(self, step: KeyStep, keys: Any, number: int, query: Any) -> None:
        """Set the keys of a step to 0 that lie outside a query's window."""
        s = self.warp.s
        lane = (query & (HALF - 1)) * 4 + self.warp.column
        for which in range(2):
            # The lanes of the query's row have the masks of its keys, two to a word.
            masks = (step.mask(which, half) for half in range(2))
            mask = tirx.Select(query < HALF, *masks)
            for e, of in enumerate(("natc_low_halves", "natc_high_halves")):
                pair_mask = call("uint32", "natc_shuffle_from", mask, lane)
                bits = s.let("attended", call("uint32", of, pair_mask, pair_mask))
                for word in range(number):
                    index = (2 * which + e) * number + word
                    s.store(keys, index, keys[index] & bits)

    def _store(self) -> None:
        warp, s, query = self.warp.for_the_end(), self.warp.s, self.alone
        for half in range(2):
            wanted = warp.has_query(half)
            if query is not None:
                is_alone = tirx.And(warp.row == query & (HALF - 1), query >> 3 == half)
                wanted = tirx.And(wanted, is_alone)
            with s.when(wanted):
                token = s.let("token", warp.token(warp.query_index[half]))
                factor = warp.p["scale"] * self.logits.inverse(half)
                store_channels(warp, self.result, self.sums, half, token, factor)
