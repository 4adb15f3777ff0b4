"""Products of a tile of queries with keys in lanes, and of weights with values."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.vectors import broadcast, load, multiply_add, vector_type
from natc.compiler.statements import Statements

Query = TypeVar("Query", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)


class At(NamedTuple):
    """A place in a buffer of float32."""

    buffer: tirx.Buffer
    offset: Any


def scores(
    s: Statements,
    queries: Mapping[Query, At],
    keys: Mapping[Key, At],
    pairs: Sequence[tuple[Query, Key]],
    *,
    first: Callable[[Query, Key], Expr],
    result: Callable[[Query, Key, Expr], None],
    channels: int,
    channel_stride: int,
    lanes: int,
    unroll: int = 1,
) -> None:
    """Compute dot products of queries with vectors of keys, all in registers.

    A query's channels are adjacent; a vector of keys has its channels `channel_stride` apart.
    first(query, key): the vector that the pair's sum starts with. result(query, key, sum): takes
    the sum. unroll: channels of a step of the loop; it must divide `channels`.
    """

    def key_vector(at: At) -> Callable[[Any], Expr]:
        return lambda c: load(at.buffer, at.offset + c * channel_stride, lanes)

    def element(at: At) -> Callable[[Any], Expr]:
        return lambda c: broadcast(at.buffer[at.offset + c], lanes)

    dot_products(
        s,
        {key: key_vector(at) for key, at in keys.items()},
        {query: element(at) for query, at in queries.items()},
        [(key, query) for query, key in pairs],
        first=lambda key, query: first(query, key),
        result=lambda key, query, value: result(query, key, value),
        channels=channels,
        lanes=lanes,
        unroll=unroll,
    )


def dot_products(
    s: Statements,
    held: Mapping[Key, Callable[[Any], Expr]],
    in_turn: Mapping[Query, Callable[[Any], Expr]],
    pairs: Sequence[tuple[Key, Query]],
    *,
    first: Callable[[Key, Query], Expr],
    result: Callable[[Key, Query, Expr], None],
    channels: int,
    lanes: int,
    unroll: int,
) -> None:
    """Compute sums over channels of the products of two vectors, for each pair of vectors.

    held, in_turn: the vectors, as functions of a channel; `held` is loaded first. first,
    result, unroll: as in `scores`.
    """
    number = {pair: n for n, pair in enumerate(pairs)}
    sums = s.registers("scores", len(pairs), vector_type(lanes))
    for pair in pairs:
        s.store(sums, number[pair], first(*pair))
    with s.loop("step", channels // unroll) as step:
        for u in range(unroll):
            c = s.let("c", step * unroll + u)
            vectors = {name: s.let("held", vector(c)) for name, vector in held.items()}
            for second, vector in in_turn.items():
                factor = s.let("factor", vector(c))
                for name in held:
                    if (name, second) in number:
                        n = number[name, second]
                        s.store(sums, n, multiply_add(factor, vectors[name], sums[n], lanes))
    for pair in pairs:
        result(*pair, sums[number[pair]])


def weighted_sum(
    s: Statements,
    weights: Sequence[tuple[int, Callable[[Any], At]]],
    values: Callable[[Any], At],
    *,
    rows: int,
    taps: int,
    result: Callable[[int, int, Expr], None],
    vectors: int,
    value_stride: int,
    lanes: int,
    weight_stride: int = 1,
) -> None:
    """Add up weight times value over rows of `taps` adjacent taps, all in registers.

    weights: for each query, the tap of the windows' union at which its own taps begin, and a
    function that returns where its weights of a row are, `weight_stride` apart. values(row): where
    the union's values are, tokens `value_stride` apart. Values outside a query's taps are not
    multiplied.
    result(query, vector, sum): takes the sum.
    """
    queries = range(len(weights))
    sums = s.registers("sums", len(weights) * vectors, vector_type(lanes))
    for n in range(len(weights) * vectors):
        s.store(sums, n, broadcast(0.0, lanes))
    with s.loop("row", rows) as row:
        value = values(row)
        places = [place(row) for _, place in weights]
        for tap in range(taps + max(shift for shift, _ in weights)):
            used = [q for q in queries if 0 <= tap - weights[q][0] < taps]

            def value_at(v: int, tap: int = tap) -> Expr:
                offset = value.offset + tap * value_stride + v * lanes
                return s.let("value", load(value.buffer, offset, lanes))

            def weight_at(q: int, tap: int = tap) -> Expr:
                offset = places[q].offset + (tap - weights[q][0]) * weight_stride
                return s.let("weight", broadcast(places[q].buffer[offset], lanes))

            # Whichever are fewer, weights or vectors of values, stay in registers; the others are
            # loaded in turn.
            if len(used) < vectors:
                held = {q: weight_at(q) for q in used}
                for v in range(vectors):
                    vector = value_at(v)
                    for q in used:
                        n = q * vectors + v
                        s.store(sums, n, multiply_add(held[q], vector, sums[n], lanes))
            else:
                loaded = [value_at(v) for v in range(vectors)]
                for q in used:
                    weight = weight_at(q)
                    for v in range(vectors):
                        n = q * vectors + v
                        s.store(sums, n, multiply_add(weight, loaded[v], sums[n], lanes))
    for q in queries:
        for v in range(vectors):
            result(q, v, sums[q * vectors + v])
