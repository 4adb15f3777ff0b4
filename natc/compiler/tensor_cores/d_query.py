"""The gradient of the query on tensor cores, a tile of queries a warp.

As in the forward, logits stay in registers. Their sum of exponentials is known, so that nothing is
corrected later and few of them are there at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from natc.compiler.tensor_cores.d_scores import KeyStep, LogitGradients
from natc.compiler.tensor_cores.halo import Part
from natc.compiler.tensor_cores.kernel import RESIDENT, ROWS, WARPS_0, WARPS_1, grid, warps_of
from natc.compiler.tensor_cores.place import WarpTile
from natc.compiler.tensor_cores.results import store_channels
from natc.compiler.tensor_cores.scores import each_part
from natc.compiler.tensor_cores.statements import Statements, call
from natc.compiler.tensor_cores.tile import HALF, Tile, channel_blocks
from natc.compiler.tensor_cores.values import Pairs, any_not_finite, multiply
from natc.spec import KernelSpec


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Warps of a block side by side, which share keys and values through the cache; rows of keys that
    are taken at once; warps of a multiprocessor for whose registers there must be room.
    """
    wide, columns = max(spec.head_dim, spec.value_dim), Tile(spec, 1, 1, 0).columns
    # The first are those with which compilers need no memory for registers, as far as there are.
    fits = spec.rank < 3 and (
        (wide <= 32 and columns <= 3) or (wide <= 64 and columns <= 2 and not spec.rpb)
    )
    resident = (12, 8, 16) if fits else (8, 12, 16)
    if spec.rank == 1:
        return {WARPS_1: (4, 2, 8, 1), RESIDENT: resident}
    rows = (2, 1, 4) if wide <= 32 and columns <= 2 else (1, 2, 4)
    return {WARPS_0: (4, 2, 1), WARPS_1: (1, 2, 4), ROWS: rows, RESIDENT: resident}


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of `d_query`.

    p: the function's parameters by name. numbers: those of `numbers`, one for each name.
    """
    tile = Tile(spec, *warps_of(numbers), 0)
    tile = replace(tile, most_products=numbers.get(ROWS, 1) * tile.columns)
    place = WarpTile(Statements(), p, tile)
    s = place.s
    with grid(place, numbers[RESIDENT]):
        place.attend()
        not_finite = _Gradient(place).compute()
        # A key beside a query's window has weight 0. Where it is not finite, that is NaN.
        with s.when(not_finite), s.loop("query", 2 * HALF) as query:
            again = place.anew(replace(tile, most_products=1))
            again.attend()
            _Gradient(again, query).compute()
    return s.statement()


class _Gradient:
    """The gradients of a tile's queries.

    alone: the number of one query, for it alone and with keys left out that it does not attend to;
    None is all.
    """

    def __init__(self, place: WarpTile, alone: Any | None = None) -> None:
        self.place, self.alone = place, alone
        self.logits = LogitGradients(place, rounded=True, shuffled=place.tile.in_parts)
        self.result = place.of_heads("output", place.spec.head_dim)
        self.blocks = channel_blocks(place.spec.head_dim)
        s = place.s
        self.sums = [s.registers(f"sums_{i}", n // 2) for i, n in enumerate(self.blocks)]

    def compute(self) -> Any:
        """Compute and store them; return whether some lane's sum of its sums is not finite."""
        s = self.place.s
        for sums, channels in zip(self.sums, self.blocks):
            with s.unrolled("i", channels // 2) as i:
                s.store(sums, i, tirx.const(0.0, "float32"))
        each_part(self.place, self._part)
        not_finite = None
        if self.alone is None:
            found = any_not_finite(self.place, self.sums, self.blocks)
            not_finite = s.let("not_finite", found) != 0
        self._store()
        return not_finite

    def _part(self, part: Part) -> None:
        """Add a part's gradients of logits times its keys."""
        place, key = self.place, self.logits.key
        pairs = Pairs(part, key)
        with self.logits.steps(part) as step:
            weights, first = step.words(), 0
            for sums, channels in zip(self.sums, self.blocks):
                number = channels // HALF // 2
                keys = pairs.load(step.number, first, channels, range(number))
                first += channels
                if self.alone is not None:
                    self._leave_out(step, keys, number, self.alone)
                for word in range(number):
                    multiply(place, sums, word, weights, keys, word, number)

    def _leave_out(self, step: KeyStep, keys: Any, number: int, query: Any) -> None:
        """Make those of a step's keys 0 that a query does not attend to."""
        s = self.place.s
        lane = (query & (HALF - 1)) * 4 + self.place.column
        for which in range(2):
            # The lanes that have the query's row know its keys: this lane's, two to a word.
            masks = (step.mask(which, half) for half in range(2))
            mask = tirx.Select(query < HALF, *masks)
            for e, of in enumerate(("natc_low_halves", "natc_high_halves")):
                other = call("uint32", "natc_shuffle_from", mask, lane)
                bits = s.let("attended", call("uint32", of, other, other))
                for word in range(number):
                    index = (2 * which + e) * number + word
                    s.store(keys, index, keys[index] & bits)

    def _store(self) -> None:
        place, s, query = self.place.for_the_end(), self.place.s, self.alone
        for half in range(2):
            wanted = place.has_query(half)
            if query is not None:
                is_it = tirx.And(place.row == query & (HALF - 1), query >> 3 == half)
                wanted = tirx.And(wanted, is_it)
            with s.when(wanted):
                token = s.let("token", place.token(place.query_index[half]))
                factor = place.p["scale"] * self.logits.inverse(half)
                store_channels(place, self.result, self.sums, half, token, factor)
