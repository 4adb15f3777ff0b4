"""Gradients of the logits of a tile's queries and a part of its halo, 16 keys at a time.

With p = exp(logit - lse - correction), the recomputed probability, the gradient of a logit is
p * (d_output . value - delta). Matrix products leave both factors in the same layout, which is
also the layout that the next product needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from natc.compiler.statements import at, call
from natc.compiler.tensor_cores.halo import Channels, Part
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.logits import LOG2_E, exponent_of, probability_of, shift_of
from natc.compiler.tensor_cores.scores import add_product, bias_index, biases, load_queries
from natc.compiler.tensor_cores.tile import HALF
from natc.compiler.tensor_cores.warp_tile import WarpTile, is_below

_PAIR = 2  # products of a step, of 8 keys each
# Gradients in float16 are multiplied by a power of two that brings the largest element of d_output
# between 2^3 and 2^4: that leaves room for sums of products above, and for small weights below.
_TARGET, _BIAS, _MANTISSA = 3, 127, 23
# Bounds of the exponent of that largest element.
_SMALLEST, _LARGEST = -30, 30


class LogitGradients:
    """A tile's queries, d_output, lse, correction and delta in registers; masks of its keys.

    rounded: whether gradients will be rounded to the kernel's dtype; in float16 they are then
    multiplied by a power of two. shuffled: see `load_queries`.
    """

    def __init__(self, warp: WarpTile, *, rounded: bool, shuffled: bool) -> None:
        self.warp = warp
        # bfloat16 needs no such factor: it has the exponents of float32.
        self._has_powers = rounded and warp.spec.dtype == "float16"
        s, p, spec = warp.s, warp.p, warp.spec
        query, self.key, self.value = warp.tensors()
        self._queries = load_queries(warp, query, shuffled=shuffled)
        self._d_outputs = load_queries(
            warp, warp.query_tensor("d_output", spec.value_dim), shuffled=shuffled
        )
        self._scale = s.let("scale_2", p["scale"] * tirx.const(LOG2_E, "float32"))
        self._masks = self._column_masks()
        self._minus_delta = s.registers("minus_delta", 2)
        self._minus_lse, self._shift, self._most = [], [], []
        for half in range(2):
            token = s.let("token", warp.token(warp.query_index[half]))
            lse, correction, delta = (
                s.let(name, warp.scalar(name, token)) for name in ("lse", "correction", "delta")
            )
            s.store(self._minus_delta, half, -delta)
            # If lse is inf the probability is NaN, as inf - inf is.
            infinite = lse == tirx.const(math.inf, "float32")
            lse = tirx.Select(infinite, tirx.const(math.nan, "float32"), lse)
            minus_log2_e, zero = (tirx.const(x, "float32") for x in (-LOG2_E, 0.0))
            minus_lse = call("float32", "fmaf", lse, minus_log2_e, zero)
            self._minus_lse.append(s.let("minus_lse", minus_lse))
            self._most.append(tirx.const(0.0, "float32"))
            if self._has_powers:
                self._most[half] = s.let("power", self._power(half, delta).astype("float32"))
            self._shift.append(s.let("shift", shift_of(correction, self._most[half])))

    def inverse(self, half: int) -> Any:
        """Return 1 / the power of two by which a half's gradients are multiplied."""
        if not self._has_powers:
            return tirx.const(1.0, "float32")
        bits = (_BIAS - self._most[half].astype("int32")) << _MANTISSA
        return tirx.reinterpret("float32", bits)

    def _power(self, half: int, delta: Any) -> Any:
        """Return the exponent of the power of two by which a half's gradients are multiplied."""
        s, spec = self.warp.s, self.warp.spec
        largest: Any = tirx.const(0, "uint32")
        for word in range(spec.value_dim // 8):
            size = self._d_outputs[2 * word + half] & tirx.const(0x7FFF7FFF, "uint32")
            largest = s.let("largest", call("uint32", "natc_max_f16x2", largest, size))
        either = [call("float32", "natc_low_f16", word) for word in (largest, largest >> 16)]
        magnitude = call("float32", "natc_row_max", tirx.max(*either))
        magnitude = tirx.max(magnitude, tirx.abs(delta))
        exponent = (tirx.reinterpret("int32", magnitude) >> _MANTISSA) - _BIAS
        exponent = tirx.max(tirx.min(exponent, _LARGEST), _SMALLEST)
        return s.let("exponent", _TARGET - exponent)

    def _column_masks(self) -> Any:
        """Return a mask of the columns in each half's window: [half (if they differ), product].

        Masks are words laid out as packed weights: a key's 16 bits are all set, or none.
        """
        warp = self.warp
        s, columns = warp.s, warp.tile.columns
        halves = 1 if warp.tile.has_rows else 2
        masks = s.registers("column_masks", halves * columns, "uint32")
        for half in range(halves):
            window = warp.windows[half][-1]
            behind = warp.axes[-1].first_key + 2 * warp.column - window.first
            behind = s.let(f"behind_{half}", behind)
            with s.unrolled("u", columns) as u:
                zero, mask = tirx.const(0, "uint32"), []
                for e, bits in enumerate((0x0000FFFF, 0xFFFF0000)):
                    attended = is_below(behind + (HALF * u + e), window.count)
                    mask.append(tirx.Select(attended, tirx.const(bits, "uint32"), zero))
                s.store(masks, half * columns + u, mask[0] | mask[1])
        return masks

    def _row_masks(self, part: Part) -> Any:
        """Return a mask of a part's rows in each half's window: [row, half], every bit or none."""
        s, tile = self.warp.s, self.warp.tile
        masks = s.registers("row_masks", 2 * tile.chunk_rows, "uint32")
        every, none = (tirx.const(bits, "uint32") for bits in (0xFFFFFFFF, 0))
        with s.unrolled("k", tile.chunk_rows) as k:
            for half in range(2):
                s.store(masks, 2 * k + half, tirx.Select(part.has_row(k, half), every, none))
        return masks

    @contextmanager
    def steps(self, part: Part) -> Iterator[KeyStep]:
        """Do the block for each step of a part."""
        warp, rpb = self.warp, self.warp.p.get("rpb")
        s, tile = warp.s, warp.tile
        bias = None if rpb is None else biases(warp, part, rpb)
        rows = self._row_masks(part) if tile.has_rows else None
        tokens = [(Channels(part, tensor), tensor.dim // 8) for tensor in (self.key, self.value)]
        with s.unrolled("step", -(-tile.products // _PAIR)) as number:
            step = KeyStep(self, part, number, rows)
            step.make(tokens, bias)
            yield step


class KeyStep:
    """16 keys of a part, in products of 8; gradients: of their logits, [product, 4] of a lane."""

    def __init__(self, of: LogitGradients, part: Part, number: Any, rows: Any | None) -> None:
        self.of, self.part, self.number, self._rows = of, part, number, rows
        self._tile = of.warp.tile
        self.gradients = of.warp.s.registers("d_logits", 4 * _PAIR)

    def mask(self, which: int, half: int) -> Any:
        """Return the mask of a packed pair of gradients: ones for a key in the half's window."""
        k, u = self._at(which)
        columns = self._tile.columns
        mask = self.of._masks[u if self._tile.has_rows else half * columns + u]
        return mask if self._rows is None else mask & self._rows[2 * k + half]

    def make(self, tokens: list[tuple[Channels, int]], bias: Any | None) -> None:
        """Compute the gradients. tokens: keys and values, with the words of each."""
        s = self.of.warp.s
        scores, weights = s.registers("scores", 8), s.registers("d_weights", 8)
        for i in range(8):
            s.store(scores, i, tirx.const(0.0, "float32"))
            s.store(weights, i, self.of._minus_delta[i % 4 // 2])
        for which in range(_PAIR):
            k, u = self._at(which)
            both = (scores, self.of._queries), (weights, self.of._d_outputs)
            with self._when_there(which):
                for (sums, rows), (channels, words) in zip(both, tokens):
                    loaded = s.registers("token_words", words, "uint32")
                    channels.load(loaded, k, u)
                    add_product(self.of.warp, at(sums, 4 * which), rows, loaded, words)
        for which in range(_PAIR):
            k, u = self._at(which)
            for half in range(2):
                for e in range(2):
                    index = 4 * which + 2 * half + e
                    of = None
                    if bias is not None:
                        of = bias[bias_index(self._tile, half, k, u, e)]
                    exponent = exponent_of(
                        scores[index], self.of._scale, self.of._minus_lse[half], of
                    )
                    probability = probability_of(
                        exponent, self.of._shift[half], self.of._most[half]
                    )
                    s.store(self.gradients, index, probability * weights[index])

    def words(self) -> list[Any]:
        """Return the gradients packed for the next product; 0 for a key outside the window."""
        warp = self.of.warp
        s = warp.s
        words = s.registers("d_logit_words", 2 * _PAIR, "uint32")
        for which in range(_PAIR):
            for half in range(2):
                pair = (self.gradients[4 * which + 2 * half + e] for e in range(2))
                word = call("uint32", f"natc_pack_{SHORT[warp.spec.dtype]}", *pair)
                # This clears gradients of keys outside the window even if they are NaN.
                word = word & self.mask(which, half)
                if self._may_lack(which):
                    none = tirx.const(0, "uint32")
                    word = tirx.Select(self._product(which) < self._tile.products, word, none)
                s.store(words, 2 * which + half, word)
        return [words[i] for i in range(2 * _PAIR)]

    def keep(self, gradients: Any, exists: Sequence[Any]) -> None:
        """Store the step's gradients in `gradients`, a part's [product, 4]; 0 outside the window.

        exists: for each half a word, all ones if the lane's query lies on the map, else 0.
        """
        s = self.of.warp.s
        for which in range(_PAIR):
            with self._when_there(which):
                for half in range(2):
                    mask = s.let("kept", self.mask(which, half) & exists[half])
                    for e, of in enumerate(("natc_low_halves", "natc_high_halves")):
                        index = 2 * half + e
                        bits = tirx.reinterpret("uint32", self.gradients[4 * which + index])
                        bits = bits & call("uint32", of, mask, mask)
                        value = tirx.reinterpret("float32", bits)
                        s.store(gradients, self._product(which) * 4 + index, value)

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
        with self.of.warp.s.when(self._product(which) < self._tile.products):
            yield
