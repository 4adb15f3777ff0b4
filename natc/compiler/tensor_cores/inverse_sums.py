"""Sums over the queries that attend to keys: weight times a vector of the query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from natc.compiler.tensor_cores.inverse import Keys, QueryStep
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.place import Tensor, TileWindow
from natc.compiler.tensor_cores.results import store_channels
from natc.compiler.tensor_cores.statements import at, call
from natc.compiler.tensor_cores.tile import HALF, channel_blocks

# Takes a step and a power of two; returns the weights of its pairs times that, as products take
# them: a word for each half of queries and of keys.
Weights = Callable[[QueryStep, float], Any]


class KeySums:
    """The sums of a tile: of each block of channels, products [channel of a lane's, 4]."""

    def __init__(self, place: Keys, vectors: Tensor) -> None:
        self.place, self.vectors = place, vectors
        self.mma = f"natc_mma_{SHORT[place.spec.dtype]}"
        self.blocks = channel_blocks(vectors.dim)
        self.arrays = [place.s.registers(f"sums_{i}", n // 2) for i, n in enumerate(self.blocks)]

    def gather(self, weights: Weights, factor: float, small: float) -> None:
        """Sum up the halo times a factor; what does not attend to a key counts for nothing.

        A query beside a key's has weight 0. Where its vector is not finite, that would be NaN:
        then the sum of each key is computed alone, with such vectors left out.

        factor: a power of two by which weights are multiplied, so that they suit the kernel's
        dtype. small: that of the second attempt, for weights may have been too large.
        """
        s = self.place.s
        self._clear()
        with self.place.steps() as step:
            self._add(step, weights(step, factor))
        check = s.registers("check", 1)
        s.store(check, 0, tirx.const(0.0, "float32"))
        for array, channels in zip(self.arrays, self.blocks):
            with s.unrolled("i", channels // 2) as i:
                s.store(check, 0, check[0] + array[i])
        with s.when(call("int32", "natc_any_not_finite", check[0]) != 0):
            self._clear()
            with self.place.steps() as step:
                self._add_alone(step, weights(step, small))
            if small != factor:
                for array, channels in zip(self.arrays, self.blocks):
                    with s.unrolled("i", channels // 2) as i:
                        s.store(array, i, array[i] * tirx.const(factor / small, "float32"))

    def store(self, result: Tensor, factor: Any) -> None:
        """Store the sums times a factor for each key that there is."""
        s = self.place.s
        place = self.place.for_the_end()
        for half in range(2):
            with s.when(place.has_query(half)):
                token = s.let("token", place.token(place.indices(half)))
                store_channels(place, result, self.arrays, half, token, factor)

    def _clear(self) -> None:
        for array, channels in zip(self.arrays, self.blocks):
            with self.place.s.unrolled("i", channels // 2) as i:
                self.place.s.store(array, i, tirx.const(0.0, "float32"))

    def _add(self, step: QueryStep, weights: Any) -> None:
        """Add a step's weights times vectors."""
        first = 0
        for array, channels in zip(self.arrays, self.blocks):
            number = channels // HALF // 2
            words = self._load(step, first, channels, 0, number)
            for word in range(number):
                self._multiply(array, 2 * word, weights, words, word, number)
            first += channels

    def _add_alone(self, step: QueryStep, weights: Any) -> None:
        """Do as `_add` does, for each key alone and with the vectors of its queries alone."""
        s, place, first = self.place.s, self.place, 0
        along = place.axes[-2] if place.tile.has_rows else place.axes[-1]
        most = 2 if place.tile.has_rows else 2 * HALF
        keys = tirx.min(along.length - along.start, most) * (2 * HALF // most)
        # A number that compilers know nothing of, or they would write some of the loop out.
        keys = s.let("keys", call("int32", "natc_uniform", keys))
        for array, channels in zip(self.arrays, self.blocks):
            for word in range(channels // HALF // 2):
                words = self._load(step, first, channels, word, 1)
                with s.loop("key", keys) as key:
                    half, row = key >> 3, key & (HALF - 1)
                    queries = self._queries_of(half, row)
                    own = s.registers("own_words", 4, "uint32")
                    for query in range(4):
                        attends = step.attends_to(query // 2, query % 2, queries)
                        zero = tirx.const(0, "uint32")
                        s.store(own, query, tirx.Select(attends, words[query], zero))
                    alone = s.registers("alone", 8)
                    with s.unrolled("i", 8) as i:
                        s.store(alone, i, tirx.const(0.0, "float32"))
                    self._multiply(alone, 0, weights, own, 0, 1)
                    for i in range(8):
                        is_its = tirx.And(place.row == row, half == i % 4 // 2)
                        index = word * 8 + i
                        added = array[index] + alone[i]
                        s.store(array, index, tirx.Select(is_its, added, array[index]))
            first += channels

    def _load(
        self, step: QueryStep, first: int, channels: int, first_word: int, number: int
    ) -> Any:
        """Return words of the lane's channels of its queries: [half, one of the pair, word].

        first, channels: the block of channels. number: words of a query, from first_word on.
        """
        place, s = self.place, self.place.s
        found = s.registers("vector_words", 4 * number, "uint32")
        channel = first + channels // HALF * place.row + 2 * first_word
        for half in range(2):
            for e in range(2):
                address = self.vectors.address(step.pair(self.vectors, half, e) + channel)
                index = (2 * half + e) * number
                s.call(f"natc_load_{4 * number}", at(found, index), address)
        return found

    def _multiply(
        self, array: Any, v: int, weights: Any, words: Any, word: int, number: int
    ) -> None:
        """Add weights times a word of each query, which is two channels, from channel v on."""
        for upper, halves in enumerate(("natc_low_halves", "natc_high_halves")):
            pairs = [
                call("uint32", halves, *(words[(2 * half + e) * number + word] for e in range(2)))
                for half in range(2)
            ]
            own = (weights[i] for i in range(4))
            self.place.s.call(self.mma, at(array, (v + upper) * 4), *own, *pairs)

    def _queries_of(self, half: Any, row: Any) -> list[TileWindow]:
        """Return the queries that attend to a key of the tile on the axes of rows and columns."""
        place = self.place

        def either(axis: int, field: int) -> Any:
            first, second = (place.queries[of][axis][field] for of in range(2))
            return tirx.Select(half == 0, first, second)

        def of_lane(field: int) -> Any:
            number = either(-1, field).astype("uint32")
            found = call("uint32", "natc_shuffle_from", number, 4 * row)
            return place.s.let("alone", found.astype("int32"))

        columns = TileWindow(of_lane(0), of_lane(1))
        return (
            [TileWindow(either(-2, 0), either(-2, 1)), columns]
            if place.tile.has_rows
            else [columns]
        )
