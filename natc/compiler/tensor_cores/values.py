"""Weighted sums of the values of a part of a halo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from natc.compiler.tensor_cores.halo import Part, Tokens
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.place import Tensor, TileWindow, WarpTile
from natc.compiler.tensor_cores.statements import at, call
from natc.compiler.tensor_cores.tile import HALF, channel_blocks

# Of two products' weights, a step of 16 keys: their numbers, 2 * step and 2 * step + 1.
_PAIR = 2


def packed_weights(place: WarpTile, weights: Any, pack: str) -> Any:
    """Return weights as products take them: words [step, 4], of which a product has two."""
    s, number = place.s, place.tile.products
    steps = -(-number // _PAIR)
    found = s.registers("weight_words", steps * 4, "uint32")
    with s.unrolled("n", number) as n, s.unrolled("half", 2) as half:
        pair = (weights[n * 4 + 2 * half + e] for e in range(2))
        s.store(found, n * 2 + half, call("uint32", pack, *pair))
    for index in range(number * 2, steps * 4):
        s.store(found, index, tirx.const(0, "uint32"))
    return found


class Pairs:
    """Where the lane's keys are, for blocks of channels: as products over keys take them.

    It has keys 2 * `column` and the next of each 8, and 8 channels or fewer of each block.
    """

    def __init__(self, part: Part, tensor: Tensor) -> None:
        self.part, place = part, part.place
        self._own = channel_blocks(tensor.dim)[0] // HALF

        def key(u: Any, e: Any) -> Any:
            return HALF * u + 2 * place.column + e

        channel = self._own * place.row
        self._tokens = Tokens(part, tensor, (place.tile.columns, 2), key, channel)

    def load(
        self,
        step: Any,
        first: int,
        channels: int,
        words: range,
        loaded: Callable[[Any, int, Any, Any, int], None] | None = None,
    ) -> Any:
        """Load words of the lane's keys of a step, 16 keys: [product of the step, e, word].

        first, channels: the block of channels. words: those of a key that are loaded. loaded:
        takes the words, the index of a key's first, the row of its product in the part, the
        product's number in the row, and e.
        """
        place, tile, number = self.part.place, self.part.tile, len(words)
        own = channels // HALF
        behind: Any = first + 2 * words.start
        if own != self._own:
            behind = behind + (own - self._own) * place.row
        values = place.s.registers("value_words", 4 * number, "uint32")
        for which in range(_PAIR):
            product = step * _PAIR + which
            # Beyond the last product, weights are 0 and values are those of the last.
            product = tirx.min(product, tile.products - 1) if tile.products % 2 else product
            k, u = tirx.truncdiv(product, tile.columns), tirx.truncmod(product, tile.columns)
            for e in range(2):
                index = (2 * which + e) * number
                self._tokens.load(values, index, number, self._tokens.find(k, u, e), behind)
                if loaded is not None:
                    loaded(values, index, k, u, e)
        return values


def multiply(
    place: WarpTile,
    sums: Any,
    index: int,
    weights: Sequence[Any],
    values: Any,
    word: int,
    number: int,
) -> None:
    """Add weights times a word of a step's keys, two channels, to sums from 2 * index on."""
    for upper, halves in enumerate(("natc_low_halves", "natc_high_halves")):
        pairs = [
            call("uint32", halves, values[first * number + word],
                 values[(first + 1) * number + word])
            for first in (0, 2)
        ]  # fmt: skip
        mma = f"natc_mma_{SHORT[place.spec.dtype]}"
        place.s.call(mma, at(sums, (2 * index + upper) * 4), *weights, *pairs)


def any_not_finite(place: WarpTile, all_sums: Sequence[Any], blocks: Sequence[int]) -> Any:
    """Return 0 unless some lane's sum of its sums, of all blocks of channels, is not finite.

    all_sums: those of each block. blocks: the channels of each.
    """
    s, check = place.s, place.s.registers("check", 1)
    s.store(check, 0, tirx.const(-0.0, "float32"))
    for sums, channels in zip(all_sums, blocks):
        with s.unrolled("i", channels // 2) as i:
            s.store(check, 0, check[0] + sums[i])
    return call("int32", "natc_any_not_finite", check[0])


class ValueSums:
    """Adding weights times values to blocks of channels: products [channel of a lane's, 4]."""

    def __init__(self, place: WarpTile, part: Part, value: Tensor, words: Any) -> None:
        self.place, self.part, self.words = place, part, words
        self._values = Pairs(part, value)

    def add(self, sums: Any, first: int, channels: int) -> None:
        """Add channels first .. first+channels-1 to `sums`.

        Of a value that is not finite and beside a query's window, NaN may be added to its sums.
        """
        self._products(sums, first, channels, range(channels // HALF // 2), None)

    def add_exactly(self, sums: Any, first: int, channels: int) -> None:
        """Do as `add` does, but let values count for the queries that attend to them alone.

        Two channels of a lane at a time, which takes few registers; where their sums are not
        finite, for each query alone.
        """
        s, place = self.place.s, self.place
        for word in range(channels // HALF // 2):
            one = range(word, word + 1)
            added, check = self._cleared("added"), s.registers("check", 1)
            self._products(added, first, channels, one, None)
            s.store(check, 0, added[0])
            with s.unrolled("i", 7) as i:
                s.store(check, 0, check[0] + added[i + 1])
            not_finite = call("int32", "natc_any_not_finite", check[0]) != 0
            with s.when(not_finite), s.loop("query", 2 * HALF) as query:
                half, row = query >> 3, query & (HALF - 1)
                alone = self._cleared("alone")
                self._products(alone, first, channels, one, self._windows(half, row))
                for i in range(8):
                    is_its = tirx.And(place.row == row, half == i % 4 // 2)
                    s.store(added, i, tirx.Select(is_its, alone[i], added[i]))
            with s.unrolled("i", 8) as i:
                s.store(sums, 8 * word + i, sums[8 * word + i] + added[i])

    def _cleared(self, name: str) -> Any:
        found = self.place.s.registers(name, 8)
        with self.place.s.unrolled("i", 8) as i:
            self.place.s.store(found, i, tirx.const(0.0, "float32"))
        return found

    def _windows(self, half: Any, row: Any) -> list[TileWindow]:
        """Return the windows of a query on the axes of rows and columns."""
        place, tile, found = self.place, self.place.tile, []
        for axis in range(place.spec.rank):
            index = place.axes[axis].start
            if axis == place.spec.rank - 1:
                index = index + row if tile.has_rows else index + row + HALF * half
            elif axis == place.spec.rank - 2:
                index = index + half
            index = tirx.min(index, place.axes[axis].length - 1)
            window = place.window(axis, index)
            first = place.s.let(f"alone_first_{axis}", window.first)
            found.append(TileWindow(first, place.s.let(f"alone_count_{axis}", window.count)))
        return found

    def _products(
        self, sums: Any, first: int, channels: int, words: range, windows: list[TileWindow] | None
    ) -> None:
        """Add products for words of a lane's keys, two channels in each, from the first sums on.

        windows: of the one query whose values count; None is all.
        """
        place, tile = self.place, self.place.tile
        s, own = place.s, windows or []

        def loaded(values: Any, index: int, k: Any, u: Any, e: int) -> None:
            key = place.axes[-1].first_key + HALF * u + 2 * place.column + e
            counts = own[-1].has(key)
            if tile.has_rows:
                counts = tirx.And(counts, own[-2].has(self.part.first_row + k))
            zero = tirx.const(0, "uint32")
            s.store(values, index, tirx.Select(counts, values[index], zero))

        with s.unrolled("step", -(-tile.products // _PAIR)) as step:
            only = loaded if own else None
            values = self._values.load(step, first, channels, words, only)
            weights = [self.words[step * 4 + i] for i in range(4)]
            for number in range(len(words)):
                multiply(place, sums, number, weights, values, number, len(words))
