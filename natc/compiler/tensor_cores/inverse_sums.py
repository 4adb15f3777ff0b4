"""Sums over the queries that attend to a key: weight times a vector of the query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from natc.compiler.statements import at, call
from natc.compiler.tensor_cores.inverse import KeyTile, QueryStep
from natc.compiler.tensor_cores.results import store_channels
from natc.compiler.tensor_cores.tile import HALF, channel_blocks
from natc.compiler.tensor_cores.values import multiply
from natc.compiler.tensor_cores.warp_tile import Tensor, TileWindow

# Takes a step and a power of two. Returns the step's weights times that power, packed for the next
# product: a word for each half of queries and each half of keys.
Weights = Callable[[QueryStep, float], list[Any]]


class KeySums:
    """The sums of a tile of keys: for each block of channels an array [channel of the lane, 4]."""

    def __init__(self, warp: KeyTile, vectors: Tensor) -> None:
        self.warp, self.vectors = warp, vectors
        self.blocks = channel_blocks(vectors.dim)
        self.arrays = [warp.s.registers(f"sums_{i}", n // 2) for i, n in enumerate(self.blocks)]

    def gather(self, weights: Weights, factor: float, small: float) -> None:
        """Sum weight * vector * factor over the halo.

        A query that does not attend to a key has weight 0, and 0 times infinity is NaN. If a sum
        is not finite, each key is summed by itself, without the vectors of such queries.

        factor: a power of two that scales weights to the range of the kernel's dtype. small: the
        factor of the second attempt, because weights may have been too large with the first.
        """
        s = self.warp.s
        self._clear()
        with self.warp.steps() as step:
            self._add(step, weights(step, factor))
        check = s.registers("check", 1)
        s.store(check, 0, tirx.const(0.0, "float32"))
        for array, channels in zip(self.arrays, self.blocks):
            with s.unrolled("i", channels // 2) as i:
                s.store(check, 0, check[0] + array[i])
        with s.when(call("int32", "natc_any_not_finite", check[0]) != 0):
            self._clear()
            with self.warp.steps() as step:
                self._add_alone(step, weights(step, small))
            if small != factor:
                for array, channels in zip(self.arrays, self.blocks):
                    with s.unrolled("i", channels // 2) as i:
                        s.store(array, i, array[i] * tirx.const(factor / small, "float32"))

    def store(self, result: Tensor, factor: Any) -> None:
        """Store the sums times `factor`, for each key that lies on the map."""
        s = self.warp.s
        warp = self.warp.for_the_end()
        for half in range(2):
            with s.when(warp.has_query(half)):
                token = s.let("token", warp.token(warp.indices(half)))
                store_channels(warp, result, self.arrays, half, token, factor)

    def _clear(self) -> None:
        for array in self.arrays:
            self.warp.s.fill(array, 0.0)

    def _add(self, step: QueryStep, weights: list[Any]) -> None:
        """Add weight times vector for the queries of a step."""
        first = 0
        for array, channels in zip(self.arrays, self.blocks):
            number = channels // HALF // 2
            words = self._load(step, first, channels, 0, number)
            for word in range(number):
                multiply(self.warp, array, word, weights, words, word, number)
            first += channels

    def _add_alone(self, step: QueryStep, weights: list[Any]) -> None:
        """Add weight times vector one key at a time, with the other queries' vectors set to 0."""
        s, warp, first = self.warp.s, self.warp, 0
        along = warp.axes[-2] if warp.tile.has_rows else warp.axes[-1]
        most = 2 if warp.tile.has_rows else 2 * HALF
        keys = tirx.min(along.length - along.start, most) * (2 * HALF // most)
        # Hidden from the compiler, which would unroll some iterations of the loop.
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
                    alone = s.zeros("alone", 8)
                    multiply(warp, alone, 0, weights, own, 0, 1)
                    for i in range(8):
                        is_own = tirx.And(warp.row == row, half == i % 4 // 2)
                        index = word * 8 + i
                        added = array[index] + alone[i]
                        s.store(array, index, tirx.Select(is_own, added, array[index]))
            first += channels

    def _load(
        self, step: QueryStep, first: int, channels: int, first_word: int, number: int
    ) -> Any:
        """Load words of the lane's channels of its queries: [half, query of the pair, word].

        first, channels: the block of channels. Loads `number` words of a query from `first_word`.
        """
        warp, s = self.warp, self.warp.s
        words = s.registers("vector_words", 4 * number, "uint32")
        channel = first + channels // HALF * warp.row + 2 * first_word
        for half in range(2):
            for e in range(2):
                address = self.vectors.address(step.pair(self.vectors, half, e) + channel)
                index = (2 * half + e) * number
                s.call(f"natc_load_{4 * number}", at(words, index), address)
        return words

    def _queries_of(self, half: Any, row: Any) -> list[TileWindow]:
        """Return the queries that attend to a key of the tile, on the axes of rows and columns.

        half, row: the key's half, and its number in the half.
        """
        warp = self.warp

        def either(axis: int, field: int) -> Any:
            first, second = (warp.queries[of][axis][field] for of in range(2))
            return tirx.Select(half == 0, first, second)

        def of_lane(field: int) -> Any:
            number = either(-1, field).astype("uint32")
            from_lane = call("uint32", "natc_shuffle_from", number, 4 * row)
            return warp.s.let("alone", from_lane.astype("int32"))

        columns = TileWindow(of_lane(0), of_lane(1))
        return (
            [TileWindow(either(-2, 0), either(-2, 1)), columns]
            if warp.tile.has_rows
            else [columns]
        )
