"""Recomputed probabilities of a tile's keys for the queries that attend to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tvm import tirx

from natc.compiler.statements import at, call
from natc.compiler.tensor_cores.inverse import KeyTile, QueryStep
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.logits import LOG2_E, exponent_of, probability_of, shift_of
from natc.compiler.tensor_cores.scores import add_product, load_channels, load_halves
from natc.compiler.tensor_cores.warp_tile import Tensor

# (half of queries, half of keys, number of the query in the lane's pair).
Pair = tuple[int, int, int]


def pairs() -> Iterator[tuple[Pair, int, int]]:
    """Yield each query and key whose product a lane holds, and the indices of product and query.

    Indices: into `products` and into `QueryStep.spread`.
    """
    for half in range(2):
        for key_half in range(2):
            for e in range(2):
                yield (half, key_half, e), 4 * half + 2 * key_half + e, 2 * half + e


def load_keys(warp: KeyTile, tensor: Tensor) -> Any:
    """Return the lane's channels of the tile's keys (or values): words [dim / 8, half]."""
    s, words = warp.s, tensor.dim // 8
    loaded = load_halves(warp, "keys_loaded", tensor)
    kept_words = s.registers("key_words", 2 * words, "uint32")
    # A product needs four consecutive registers, and a load writes elsewhere. To save registers,
    # the compiler would repeat a copy in every step; a shuffle, here of the lane with itself, it
    # never repeats.
    for half in range(2):
        for word in range(words):
            own = call("uint32", "natc_shuffle_from", loaded[half * words + word], warp.lane)
            s.store(kept_words, 2 * word + half, own)
    return kept_words


def products(step: QueryStep, keys: Any, tensor: Tensor, start: Any | None = None) -> Any:
    """Return dot products of the tile's keys and a step's queries: [half of queries, 4].

    keys: from `load_keys`. tensor: holds the queries' vectors. start: for each query of a lane,
    a number to add to its products; None adds nothing.
    """
    warp, words = step.warp, tensor.dim // 8
    s = warp.s
    sums = s.registers("products", 8)
    for _, index, query in pairs():
        s.store(sums, index, tirx.const(0.0, "float32") if start is None else start[query])
    for half in range(2):
        loaded = s.registers("query_words", words, "uint32")
        load_channels(warp, loaded, 0, tensor, step.own(tensor, half))
        add_product(warp, at(sums, 4 * half), keys, loaded, words)
    return sums


def probabilities(step: QueryStep, scores: Any, factor: float) -> Any:
    """Return each probability times `factor`, a power of two, in the layout of `products`.

    The number for a query that does not attend to the key is arbitrary; `packed` clears it.
    """
    warp = step.warp
    s, p = warp.s, warp.p
    most = math.log2(factor)  # a probability is at most 1
    limit = tirx.const(most, "float32")
    minus_lse = call("float32", "natc_minus_lse", step.scalar("lse"))
    minus_lse = step.spread(s.let("minus_lse", minus_lse))
    shift = step.spread(s.let("shift", shift_of(step.scalar("correction"), limit)))
    bias = step.biases() if "rpb" in p else None
    scale = p["scale"] * tirx.const(LOG2_E, "float32")
    numbers = s.registers("probabilities", 8)
    for (half, key_half, e), index, query in pairs():
        of = None if bias is None else bias[2 * (key_half - half + 1) + e]
        exponent = exponent_of(scores[index], scale, minus_lse[query], of)
        s.store(numbers, index, probability_of(exponent, shift[query], limit))
    return numbers


def packed(step: QueryStep, weights: Any) -> list[Any]:
    """Pack weights for the next product; 0 if the query does not attend to the key.

    The result has a word for each half of queries and each half of keys.
    """
    warp = step.warp
    s = warp.s
    words = s.registers("weight_words", 4, "uint32")
    pack = f"natc_pack_{SHORT[warp.spec.dtype]}"
    for half in range(2):
        for key_half in range(2):
            word = 2 * half + key_half
            both = call("uint32", pack, *(weights[2 * word + e] for e in range(2)))
            s.store(words, word, both & step.mask(half, key_half))
    return [words[i] for i in range(4)]
