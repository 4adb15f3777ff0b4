"""Weights of pairs of a tile's keys and the queries that attend to them, made anew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tvm import tirx

from natc.compiler.tensor_cores.inverse import Keys, QueryStep
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.logits import probability_of
from natc.compiler.tensor_cores.place import Tensor
from natc.compiler.tensor_cores.scores import LOG2_E, load_channels, load_halves
from natc.compiler.tensor_cores.statements import at, call

# Of a half of queries, a half of keys and one of a lane's two queries: the indices of a pair's
# product and of the query's number.
Pair = tuple[int, int, int]


def pairs() -> Iterator[tuple[Pair, int, int]]:
    """Yield each pair that a lane has of a step, the index of its product, and of its query."""
    for half in range(2):
        for key_half in range(2):
            for e in range(2):
                yield (half, key_half, e), 4 * half + 2 * key_half + e, 2 * half + e


def load_keys(place: Keys, tensor: Tensor) -> Any:
    """Return the channels of the tile's keys, or their values: words [dim / 8, half] of a lane."""
    s, words = place.s, tensor.dim // 8
    loaded = load_halves(place, "keys_loaded", tensor)
    found = s.registers("key_words", 2 * words, "uint32")
    # A product takes four registers in a row, a load writes others. Whatever the compiler can do
    # again, it does in every step to save registers; a shuffle, though of a lane's own, it cannot.
    for half in range(2):
        for word in range(words):
            own = call("uint32", "natc_shuffle_from", loaded[half * words + word], place.lane)
            s.store(found, 2 * word + half, own)
    return found


def products(step: QueryStep, keys: Any, tensor: Tensor, start: Any | None = None) -> Any:
    """Return dot products of the tile's keys and a step's queries: [half of queries, 4].

    keys: channels of the tile's keys as `load_keys` has them. tensor: of the queries. start:
    for each query of a lane, what its products begin with; None is 0.
    """
    place, words = step.place, tensor.dim // 8
    s = place.s
    found = s.registers("products", 8)
    for _, index, query in pairs():
        s.store(found, index, tirx.const(0.0, "float32") if start is None else start[query])
    for half in range(2):
        loaded = s.registers("query_words", words, "uint32")
        load_channels(place, loaded, 0, tensor, step.own(tensor, half))
        for first in range(0, words, 2):
            s.call(
                f"natc_mma_{SHORT[place.spec.dtype]}",
                at(found, 4 * half),
                *(keys[2 * first + i] for i in range(4)),
                *(loaded[first + w] for w in range(2)),
            )
    return found


def probabilities(step: QueryStep, scores: Any, factor: float) -> Any:
    """Return the softmax of each pair's logit times a power of two: as `products`.

    It is what `Problem.probability` defines. That of what is no pair is any number.
    """
    place = step.place
    s, p = place.s, place.p
    most = math.log2(factor)  # a softmax is 1 at most
    lse = call("float32", "natc_log2_less", step.number("lse"), tirx.const(most, "float32"))
    lse = step.spread(s.let("lse_2", lse))
    bias = step.biases() if "rpb" in p else None
    scale = p["scale"] * tirx.const(LOG2_E, "float32")
    found = s.registers("probabilities", 8)
    for (half, key_half, e), index, query in pairs():
        less = -lse[query] if bias is None else bias[2 * (key_half - half + 1) + e] - lse[query]
        limit = tirx.const(most, "float32")
        s.store(found, index, probability_of(scores[index], scale, less, limit))
    return found


def packed(step: QueryStep, weights: Any) -> Any:
    """Return weights as products take them, 0 for what is no pair.

    A word for each half of queries and of keys.
    """
    place = step.place
    s = place.s
    found = s.registers("weight_words", 4, "uint32")
    pack = f"natc_pack_{SHORT[place.spec.dtype]}"
    for half in range(2):
        for key_half in range(2):
            word = 2 * half + key_half
            both = call("uint32", pack, *(weights[2 * word + e] for e in range(2)))
            s.store(found, word, both & step.mask(half, key_half))
    return found
