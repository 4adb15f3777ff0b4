"""Sums of probability times value (in d_query: gradient times key) over a part of a halo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from natc.compiler.statements import at, call
from natc.compiler.tensor_cores.halo import Part, Tokens
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.tile import HALF, channel_blocks
from natc.compiler.tensor_cores.warp_tile import Tensor, TileWindow, WarpTile

# A step multiplies weights of 16 keys, which two products of scores gave: 2 * step and the next.
_PAIR = 2


def packed_weights(warp: WarpTile, weights: Any, pack: str) -> Any:
    """Pack weights for the next product: words [step, 4], two for each product of scores."""
    s, number = warp.s, warp.tile.products
    steps = -(-number // _PAIR)
    words = s.registers("weight_words", steps * 4, "uint32")
    with s.unrolled("n", number) as n, s.unrolled("half", 2) as half:
        pair = (weights[n * 4 + 2 * half + e] for e in range(2))
        s.store(words, n * 2 + half, call("uint32", pack, *pair))
    for index in range(number * 2, steps * 4):
        s.store(words, index, tirx.const(0, "uint32"))
    return words


class Pairs:
    """Loads of keys or values, ordered as products over keys need them.

    Of each 8 adjacent keys the lane loads number 2 * `column` and the next, and of each block of
    channels at most 8.
    """

    def __init__(self, part: Part, tensor: Tensor) -> None:
        self.part, warp = part, part.warp
        self._own = channel_blocks(tensor.dim)[0] // HALF

        def key(u: Any, e: Any) -> Any:
            return HALF * u + 2 * warp.column + e

        channel = self._own * warp.row
        self._tokens = Tokens(part, tensor, (warp.tile.columns, 2), key, channel)

    def load(
        self,
        step: Any,
        first: int,
        channels: int,
        words: range,
        loaded: Callable[[Any, int, Any, Any, int], None] | None = None,
    ) -> Any:
        """Load words of the lane's keys of a step: [product of the step, e, word].

        first, channels: the block of channels. words: which words of a key to load. loaded: called
        for each key with the array, the index of the key's first word, the row of its product in
        the part, the product's number in the row, and e.
        """
        warp, tile, number = self.part.warp, self.part.tile, len(words)
        own = channels // HALF
        behind: Any = first + 2 * words.start
        if own != self._own:
            behind = behind + (own - self._own) * warp.row
        values = warp.s.registers("value_words", 4 * number, "uint32")
        for which in range(_PAIR):
            product = step * _PAIR + which
            # After the last product, weights are 0; the last product's values are loaded again.
            product = tirx.min(product, tile.products - 1) if tile.products % 2 else product
            k, u = tirx.truncdiv(product, tile.columns), tirx.truncmod(product, tile.columns)
            for e in range(2):
                index = (2 * which + e) * number
                self._tokens.load(values, index, number, self._tokens.find(k, u, e), behind)
                if loaded is not None:
                    loaded(values, index, k, u, e)
        return values


def multiply(
    warp: WarpTile,
    sums: Any,
    index: int,
    weights: Sequence[Any],
    vectors: Any,
    word: int,
    number: int,
) -> None:
    """Add weights times word `word` of 16 tokens, two channels, to sums 2 * index and the next.

    vectors: `number` words of each of the lane's tokens, [half, token of the pair, word].
    """
    mma = f"natc_mma_{SHORT[warp.spec.dtype]}"
    for upper, halves in enumerate(("natc_low_halves", "natc_high_halves")):
        pairs = [
            call("uint32", halves, *(vectors[(2 * half + e) * number + word] for e in range(2)))
            for half in range(2)
        ]
        warp.s.call(mma, at(sums, (2 * index + upper) * 4), *weights, *pairs)


def any_not_finite(warp: WarpTile, all_sums: Sequence[Any], blocks: Sequence[int]) -> Any:
    """Return 0 if the total of every lane's sums is finite.

    all_sums: an array of sums for each block of channels. blocks: the channels of each block.
    """
    s, check = warp.s, warp.s.registers("check", 1)
    s.store(check, 0, tirx.const(-0.0, "float32"))
    for sums, channels in zip(all_sums, blocks):
        with s.unrolled("i", channels // 2) as i:
            s.store(check, 0, check[0] + sums[i])
    return call("int32", "natc_any_not_finite", check[0])


class ValueSums:
    """Adds weights times values to sums of one block of channels: [channel of the lane, 4]."""

    def __init__(self, warp: WarpTile, part: Part, value: Tensor, words: Any) -> None:
        self.warp, self.part, self.words = warp, part, words
        self._values = Pairs(part, value)

    def add(self, sums: Any, first: int, channels: int) -> None:
        """Add channels first .. first+channels-1 to `sums`.

        If a value outside a query's window is not finite, the query's sums may become NaN.
        """
        self._products(sums, first, channels, range(channels // HALF // 2), None)

    def add_exactly(self, sums: Any, first: int, channels: int) -> None:
        """As `add`, but a value outside a query's window never reaches the query's sums.

        Adds two channels of a lane at a time, which takes few registers. If their sums are not
        finite, they are computed again for each query by itself.
        """
        s, warp = self.warp.s, self.warp
        for word in range(channels // HALF // 2):
            this_word = range(word, word + 1)
            added, check = s.zeros("added", 8), s.registers("check", 1)
            self._products(added, first, channels, this_word, None)
            s.store(check, 0, added[0])
            with s.unrolled("i", 7) as i:
                s.store(check, 0, check[0] + added[i + 1])
            not_finite = call("int32", "natc_any_not_finite", check[0]) != 0
            with s.when(not_finite), s.loop("query", 2 * HALF) as query:
                half, row = query >> 3, query & (HALF - 1)
                alone = s.zeros("alone", 8)
                self._products(alone, first, channels, this_word, self._windows(half, row))
                for i in range(8):
                    is_own = tirx.And(warp.row == row, half == i % 4 // 2)
                    s.store(added, i, tirx.Select(is_own, alone[i], added[i]))
            with s.unrolled("i", 8) as i:
                s.store(sums, 8 * word + i, sums[8 * word + i] + added[i])

    def _windows(self, half: Any, row: Any) -> list[TileWindow]:
        """Return the windows of a query on the axes of rows and columns."""
        warp, tile, windows = self.warp, self.warp.tile, []
        for axis in range(warp.spec.rank):
            index = warp.axes[axis].start
            if axis == warp.spec.rank - 1:
                index = index + row if tile.has_rows else index + row + HALF * half
            elif axis == warp.spec.rank - 2:
                index = index + half
            index = tirx.min(index, warp.axes[axis].length - 1)
            window = warp.window(axis, index)
            first = warp.s.let(f"alone_first_{axis}", window.first)
            windows.append(TileWindow(first, warp.s.let(f"alone_count_{axis}", window.count)))
        return windows

    def _products(
        self, sums: Any, first: int, channels: int, words: range, windows: list[TileWindow] | None
    ) -> None:
        """Add weights times `words` of the lane's values, two channels a word, to `sums`.

        windows: the windows of the only query to sum for; None for all queries.
        """
        warp, tile = self.warp, self.warp.tile
        s, own = warp.s, windows or []

        def loaded(values: Any, index: int, k: Any, u: Any, e: int) -> None:
            key = warp.axes[-1].first_key + HALF * u + 2 * warp.column + e
            counts = own[-1].has(key)
            if tile.has_rows:
                counts = tirx.And(counts, own[-2].has(self.part.first_row + k))
            zero = tirx.const(0, "uint32")
            s.store(values, index, tirx.Select(counts, values[index], zero))

        with s.unrolled("step", -(-tile.products // _PAIR)) as step:
            clear_outside = loaded if own else None
            values = self._values.load(step, first, channels, words, clear_outside)
            weights = [self.words[step * 4 + i] for i in range(4)]
            for number in range(len(words)):
                multiply(warp, sums, number, weights, values, number, len(words))
