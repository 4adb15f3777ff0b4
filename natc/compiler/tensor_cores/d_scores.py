"""Gradients of the logits of a tile's queries and a part of its halo, 16 keys at a time.

With p = exp(logit - lse), the softmax made anew, the gradient of a logit is
p * (d_output . value - delta). Both factors are laid out as products leave them, and so is what
the next product takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from natc.compiler.tensor_cores.halo import Channels, Part
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.logits import probability_of
from natc.compiler.tensor_cores.place import WarpTile
from natc.compiler.tensor_cores.scores import LOG2_E, add_product, bias_index, biases, load_queries
from natc.compiler.tensor_cores.statements import at, call
from natc.compiler.tensor_cores.tile import HALF

_PAIR = 2  # products of a step, of 8 keys each
# Gradients in float16 are taken times a power of two that brings the largest number of d_output
# between 2^3 and 2^4: there is room for sums of products above, and for small weights below.
_TARGET, _BIAS, _MANTISSA = 3, 127, 23
# The powers that are used, as exponents of that largest number.
_SMALLEST, _LARGEST = -30, 30


class LogitGradients:
    """What a tile's queries bring to the gradients of their logits, and the keys' masks.

    rounded: whether they are rounded to the kernel's dtype, for which they are taken times a power
    of two where that is float16. shuffled: as `load_queries` takes it.
    """

    def __init__(self, place: WarpTile, *, rounded: bool, shuffled: bool) -> None:
        self.place = place
        # The exponents of bfloat16 are those of float32.
        self._has_powers = rounded and place.spec.dtype == "float16"
        s, p, spec = place.s, place.p, place.spec
        query, self.key, self.value = place.tensors()
        self._queries = load_queries(place, query, shuffled=shuffled)
        self._d_outputs = load_queries(
            place, place.of_heads("d_output", spec.value_dim), shuffled=shuffled
        )
        self._scale = s.let("scale_2", p["scale"] * tirx.const(LOG2_E, "float32"))
        self._masks = self._columns()
        self._minus_delta = s.registers("minus_delta", 2)
        self._less, self._most = [], []
        for half in range(2):
            token = s.let("token", place.token(place.query_index[half]))
            lse, delta = (s.let(n, place.number(n, token)) for n in ("lse", "delta"))
            s.store(self._minus_delta, half, -delta)
            # Where lse is inf the softmax is NaN, as inf - inf is.
            infinite = lse == tirx.const(math.inf, "float32")
            exact = tirx.Select(infinite, tirx.const(math.nan, "float32"), lse)
            less = exact * tirx.const(-LOG2_E, "float32")
            self._most.append(tirx.const(0.0, "float32"))
            if self._has_powers:
                self._most[half] = s.let("power", self._power(half, delta).astype("float32"))
                less = less + self._most[half]
            self._less.append(s.let("less", less))

    def inverse(self, half: int) -> Any:
        """Return 1 over what a half's gradients are times."""
        if not self._has_powers:
            return tirx.const(1.0, "float32")
        bits = (_BIAS - self._most[half].astype("int32")) << _MANTISSA
        return tirx.reinterpret("float32", bits)

    def _power(self, half: int, delta: Any) -> Any:
        """Return the exponent of the power of two that a half's gradients are taken times."""
        s, spec = self.place.s, self.place.spec
        largest: Any = tirx.const(0, "uint32")
        for word in range(spec.value_dim // 8):
            size = self._d_outputs[2 * word + half] & tirx.const(0x7FFF7FFF, "uint32")
            largest = s.let("largest", call("uint32", "natc_max_f16x2", largest, size))
        either = [call("float32", "natc_low_f16", word) for word in (largest, largest >> 16)]
        found = call("float32", "natc_row_max", tirx.max(*either))
        found = tirx.max(found, tirx.abs(delta))
        exponent = (tirx.reinterpret("int32", found) >> _MANTISSA) - _BIAS
        exponent = tirx.max(tirx.min(exponent, _LARGEST), _SMALLEST)
        return s.let("exponent", _TARGET - exponent)

    def _columns(self) -> Any:
        """Return which keys of a row a half attends to: [half where they differ, product].

        In words as products take weights: all bits of a key's 16 are set, or none.
        """
        place = self.place
        s, columns = place.s, place.tile.columns
        halves = 1 if place.tile.has_rows else 2
        found = s.registers("column_masks", halves * columns, "uint32")
        for half in range(halves):
            window = place.windows[half][-1]
            behind = place.axes[-1].first_key + 2 * place.column - window.first
            behind = s.let(f"behind_{half}", behind)
            with s.unrolled("u", columns) as u:
                zero, mask = tirx.const(0, "uint32"), []
                for e, bits in enumerate((0x0000FFFF, 0xFFFF0000)):
                    # One comparison, since negative numbers become large.
                    key = (behind + (HALF * u + e)).astype("uint32")
                    attended = key < window.count.astype("uint32")
                    mask.append(tirx.Select(attended, tirx.const(bits, "uint32"), zero))
                s.store(found, half * columns + u, mask[0] | mask[1])
        return found

    def _rows(self, part: Part) -> Any:
        """Return which rows of a part a half attends to: [row, half], every bit or none."""
        s, tile = self.place.s, self.place.tile
        found = s.registers("row_masks", 2 * tile.chunk_rows, "uint32")
        every, none = (tirx.const(bits, "uint32") for bits in (0xFFFFFFFF, 0))
        with s.unrolled("k", tile.chunk_rows) as k:
            for half in range(2):
                s.store(found, 2 * k + half, tirx.Select(part.has_row(k, half), every, none))
        return found

    @contextmanager
    def steps(self, part: Part) -> Iterator[KeyStep]:
        """Do the block for each step of a part."""
        place, rpb = self.place, self.place.p.get("rpb")
        s, tile = place.s, place.tile
        bias = None if rpb is None else biases(place, part, rpb)
        rows = self._rows(part) if tile.has_rows else None
        tokens = [(Channels(part, tensor), tensor.dim // 8) for tensor in (self.key, self.value)]
        with s.unrolled("step", -(-tile.products // _PAIR)) as number:
            step = KeyStep(self, part, number, rows)
            step.make(tokens, bias)
            yield step


class KeyStep:
    """16 keys of a part, in products of 8; gradients: of their logits, [product, 4] of a lane."""

    def __init__(self, of: LogitGradients, part: Part, number: Any, rows: Any | None) -> None:
        self.of, self.part, self.number, self._rows = of, part, number, rows
        self._tile = of.place.tile
        self.gradients = of.place.s.registers("d_logits", 4 * _PAIR)

    def mask(self, which: int, half: int) -> Any:
        """Return the bits of a word of gradients whose keys a half attends to."""
        k, u = self._at(which)
        columns = self._tile.columns
        found = self.of._masks[u if self._tile.has_rows else half * columns + u]
        return found if self._rows is None else found & self._rows[2 * k + half]

    def make(self, tokens: list[tuple[Channels, int]], bias: Any | None) -> None:
        """Compute the gradients. tokens: keys and values, with the words of each."""
        s = self.of.place.s
        scores, weights = s.registers("scores", 8), s.registers("d_weights", 8)
        for i in range(8):
            s.store(scores, i, tirx.const(0.0, "float32"))
            s.store(weights, i, self.of._minus_delta[i % 4 // 2])
        for which in range(_PAIR):
            k, u = self._at(which)
            both = (scores, self.of._queries), (weights, self.of._d_outputs)
            with self._when_there(which):
                for (found, rows), (channels, words) in zip(both, tokens):
                    loaded = s.registers("token_words", words, "uint32")
                    channels.load(loaded, k, u)
                    add_product(self.of.place, at(found, 4 * which), rows, loaded, words)
        for which in range(_PAIR):
            k, u = self._at(which)
            for half in range(2):
                for e in range(2):
                    index = 4 * which + 2 * half + e
                    less = self.of._less[half]
                    if bias is not None:
                        less = bias[bias_index(self._tile, half, k, u, e)] + less
                    scale, most = self.of._scale, self.of._most[half]
                    probability = probability_of(scores[index], scale, less, most)
                    s.store(self.gradients, index, probability * weights[index])

    def words(self) -> list[Any]:
        """Return the gradients rounded, as products take them; 0 for what is no pair."""
        place = self.of.place
        s = place.s
        found = s.registers("d_logit_words", 2 * _PAIR, "uint32")
        for which in range(_PAIR):
            for half in range(2):
                pair = (self.gradients[4 * which + 2 * half + e] for e in range(2))
                word = call("uint32", f"natc_pack_{SHORT[place.spec.dtype]}", *pair)
                # Whatever was made of keys that the query does not attend to, NaN too.
                word = word & self.mask(which, half)
                if self._may_lack(which):
                    none = tirx.const(0, "uint32")
                    word = tirx.Select(self._product(which) < self._tile.products, word, none)
                s.store(found, 2 * which + half, word)
        return [found[i] for i in range(2 * _PAIR)]

    def keep(self, found: Any, exists: Sequence[Any]) -> None:
        """Store the gradients as a part has its products, [product, 4]; 0 for what is no pair.

        exists: of each half, every bit of a word where the lane's query is one, else none.
        """
        s = self.of.place.s
        for which in range(_PAIR):
            with self._when_there(which):
                for half in range(2):
                    mask = s.let("kept", self.mask(which, half) & exists[half])
                    for e, of in enumerate(("natc_low_halves", "natc_high_halves")):
                        index = 2 * half + e
                        bits = tirx.reinterpret("uint32", self.gradients[4 * which + index])
                        bits = bits & call("uint32", of, mask, mask)
                        value = tirx.reinterpret("float32", bits)
                        s.store(found, self._product(which) * 4 + index, value)

    def _product(self, which: int) -> Any:
        return self.number * _PAIR + which

    def _may_lack(self, which: int) -> bool:
        return which > 0 and self._tile.products % 2 > 0

    def _at(self, which: int) -> tuple[Any, Any]:
        """Return the row of a product in its part, and its number in the row."""
        product = self._product(which)
        if self._may_lack(which):
            product = tirx.min(product, self._tile.products - 1)
        columns = self._tile.columns
        return tirx.truncdiv(product, columns), tirx.truncmod(product, columns)

    @contextmanager
    def _when_there(self, which: int) -> Iterator[None]:
        if not self._may_lack(which):
            yield
            return
        with self.of.place.s.when(self._product(which) < self._tile.products):
            yield
