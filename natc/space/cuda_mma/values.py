"""Weighted sums of the values of a part of a halo."""

from __future__ import annotations

from typing import Any

from tvm import tirx

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


class Sums:
    """The sums of a block of channels: products [channel of a lane's, 4]."""

    def __init__(self, place: Place, part: Part, value: Tensor, mma: str) -> None:
        self.place, self.part, self.value, self.mma = place, part, value, mma

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
        columns = s.registers("value_columns", tile.columns * 2, "int32")
        with s.unrolled("u", tile.columns) as u, s.unrolled("e", 2) as e:
            key = HALF * u + 2 * place.column + e
            channel = first + own * place.row + 2 * first_word
            s.store(columns, 2 * u + e, column_offset(place, value, key) + channel)
        with s.unrolled("step", -(-tile.products // _PAIR)) as step:
            values = s.registers("value_words", 4 * number, "uint32")
            for which in range(_PAIR):
                product = step * _PAIR + which
                # Beyond the last product, weights are 0 and values are those of the last.
                product = tirx.min(product, tile.products - 1) if tile.products % 2 else product
                k, u = tirx.truncdiv(product, tile.columns), tirx.truncmod(product, tile.columns)
                row = s.let("value_row", self.part.offset(value, k))
                for e in range(2):
                    place_of = (2 * which + e) * number
                    element = row + columns[2 * u + e]
                    s.call(f"natc_load_{4 * number}", at(values, place_of), value.address(element))
                    if windows is not None:
                        key = place.axes[-1].first_key + HALF * u + 2 * place.column + e
                        counts = windows[-1].has(key)
                        if tile.has_rows:
                            row_index = self.part.first_row + k
                            counts = tirx.And(counts, windows[-2].has(row_index))
                        zero = tirx.const(0, "uint32")
                        s.store(values, place_of, tirx.Select(counts, values[place_of], zero))
            for word in range(number):
                for upper, halves in enumerate(("natc_low_halves", "natc_high_halves")):
                    pairs = [
                        call("uint32", halves, values[first_ * number + word],
                             values[(first_ + 1) * number + word])
                        for first_ in (0, 2)
                    ]  # fmt: skip
                    weights = (words[step * 4 + i] for i in range(4))
                    s.call(self.mma, at(sums, (2 * word + upper) * 4), *weights, *pairs)
