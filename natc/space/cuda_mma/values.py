"""Weighted sums of the values of a part of a halo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from natc.space.cuda_mma.kernel import SHORT
from natc.space.cuda_mma.place import Place, Tensor, Window
from natc.space.cuda_mma.scores import Part, column_offset
from natc.space.cuda_mma.statements import at, call
from natc.space.cuda_mma.tile import HALF

# Of two products' weights, a step of 16 keys: their numbers, 2 * step and 2 * step + 1.
_PAIR = 2


def packed_weights(place: Place, weights: Any, pack: str) -> Any:
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


def token_columns(place: Place, tensor: Tensor, channel: Any) -> Any:
    """Return how far behind a row's first token a channel of the lane's keys is: [product, e].

    As products over keys take them, a lane has keys 2 * `column` and the next of each 8.
    """
    s, tile = place.s, place.tile
    columns = s.registers("value_columns", tile.columns * 2, "int32")
    with s.unrolled("u", tile.columns) as u, s.unrolled("e", 2) as e:
        key = HALF * u + 2 * place.column + e
        s.store(columns, 2 * u + e, column_offset(place, tensor, key) + channel)
    return columns


def load_pair(
    part: Part,
    tensor: Tensor,
    columns: Any,
    step: Any,
    number: int,
    loaded: Callable[[Any, int, Any, Any, int], None] | None = None,
) -> Any:
    """Load words of the lane's keys of a step, 16 keys: [product of the step, e, word].

    columns: as `token_columns` has them. number: words of a key. loaded: takes the words, the
    index of a key's first, the row of its product in the part, the product's number in the row,
    and e.
    """
    place, tile = part.place, part.tile
    s = place.s
    values = s.registers("value_words", 4 * number, "uint32")
    for which in range(_PAIR):
        product = step * _PAIR + which
        # Beyond the last product, weights are 0 and values are those of the last.
        product = tirx.min(product, tile.products - 1) if tile.products % 2 else product
        k, u = tirx.truncdiv(product, tile.columns), tirx.truncmod(product, tile.columns)
        row = s.let("value_row", part.offset(tensor, k))
        for e in range(2):
            place_of = (2 * which + e) * number
            element = row + columns[2 * u + e]
            s.call(f"natc_load_{4 * number}", at(values, place_of), tensor.address(element))
            if loaded is not None:
                loaded(values, place_of, k, u, e)
    return values


def multiply(
    place: Place,
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


class Sums:
    """The sums of a block of channels: products [channel of a lane's, 4]."""

    def __init__(self, place: Place, part: Part, value: Tensor) -> None:
        self.place, self.part, self.value = place, part, value

    def add(self, words: Any, first: int, channels: int) -> Any:
        """Return weights times values for channels first .. first+channels-1.

        A value beside a query's window is weighted with 0. Where it is not finite, that would be
        NaN: then each query's sum is computed alone, with such values left out.
        """
        s, place, own = self.place.s, self.place, channels // HALF
        sums = s.registers("sums", own * 4)
        self._clear(sums, own * 4)
        self._products(sums, words, first, own, 0, own // 2, None)
        check = s.registers("check", 1)
        s.store(check, 0, sums[0])
        with s.unrolled("i", own * 4 - 1) as i:
            s.store(check, 0, check[0] + sums[i + 1])
        not_finite = call("int32", "natc_any_not_finite", check[0]) != 0
        with s.when(not_finite), s.loop("query", 2 * HALF) as query:
            half, row = query >> 3, query & (HALF - 1)
            windows = self._windows(half, row)
            for word in range(own // 2):
                alone = s.registers("alone", 8)
                self._clear(alone, 8)
                self._products(alone, words, first, own, word, 1, windows)
                for i in range(8):
                    is_its = tirx.And(place.row == row, half == i % 4 // 2)
                    index = word * 8 + i
                    s.store(sums, index, tirx.Select(is_its, alone[i], sums[index]))
        return sums

    def _clear(self, array: Any, count: int) -> None:
        with self.place.s.unrolled("i", count) as i:
            self.place.s.store(array, i, tirx.const(0.0, "float32"))

    def _windows(self, half: Any, row: Any) -> list[Window]:
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
            found.append(Window(first, place.s.let(f"alone_count_{axis}", window.count)))
        return found

    def _products(
        self,
        sums: Any,
        words: Any,
        first: int,
        own: int,
        first_word: int,
        number: int,
        windows: list[Window] | None,
    ) -> None:
        """Add products for words first_word .. of a lane's channels, two channels in each.

        own: channels of a lane. windows: of the one query whose values count; None is all.
        """
        place, tile, value = self.place, self.place.tile, self.value
        s = place.s
        columns = token_columns(place, value, first + own * place.row + 2 * first_word)
        with s.unrolled("step", -(-tile.products // _PAIR)) as step:

            def loaded(values: Any, index: int, k: Any, u: Any, e: int) -> None:
                assert windows is not None
                key = place.axes[-1].first_key + HALF * u + 2 * place.column + e
                counts = windows[-1].has(key)
                if tile.has_rows:
                    counts = tirx.And(counts, windows[-2].has(self.part.first_row + k))
                zero = tirx.const(0, "uint32")
                s.store(values, index, tirx.Select(counts, values[index], zero))

            values = load_pair(
                self.part, value, columns, step, number, loaded if windows else None
            )
            for word in range(number):
                weights = [words[step * 4 + i] for i in range(4)]
                multiply(place, sums, word, weights, values, word, number)
