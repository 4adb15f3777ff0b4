"""The softmax of queries, on vectors of taps; scores are logits to the base of two."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.products import At
from natc.compiler.cpu_tiles.vectors import (
    broadcast,
    folded,
    load,
    multiply_add,
    save,
    vector_type,
)
from natc.compiler.statements import Statements

# The polynomial of degree 6 with the least relative error for 2^f, |f| <= 1/2: 2e-9, before
# rounding. The constant is 1, so that the largest logit has the weight 1.
_POWER = (
    *(1.0, 0.6931472057372526, 0.24022646890639573, 0.055503287769976636),
    *(0.009618488956522791, 0.001339993120947414, 0.00015345812158740183),
)
# From here on 2^x is 0: it would be below the smallest normal number.
_UNDERFLOW = -127.0
# The most vectors that are written out; more are a loop.
_UNROLLED = 16


class Softmaxes:
    """The softmax of many queries, in passes over all of them so that no step waits for another.

    at(query): the first of `rows` rows of `columns` taps, each filled up to `padded`, whole
    vectors. largest, total: for each query, a place for its largest logit, and a vector
    of partial sums of its weights.
    """

    def __init__(
        self,
        s: Statements,
        at: Callable[[Expr], At],
        largest: Callable[[Expr], At],
        total: Callable[[Expr], At],
        *,
        rows: int,
        columns: int,
        padded: int,
        lanes: int,
    ) -> None:
        self.s, self.at, self.largest, self.total = s, at, largest, total
        self.rows, self.columns, self.lanes = rows, columns, lanes
        self.vectors = padded // lanes
        self.together = max(1, min(rows, _UNROLLED // self.vectors))
        while rows % self.together:
            self.together -= 1

    def find_largest(self, query: Expr) -> None:
        """Write a query's largest logit, which may ignore a NaN."""
        s, lanes = self.s, self.lanes
        most = self._of_each_column("most", -math.inf)
        self._each(query, lambda n, _, logits: s.store(most, n, larger(logits, most[n])))
        largest = self._without_padding(most, -math.inf, larger)
        save(s, *self.largest(query), folded(largest, lanes, tirx.max), 1)

    def weigh(self, query: Expr) -> None:
        """Replace a query's logits by 2^(logit - base), and write `lanes` sums of these weights.

        Taps that pad a row get any weight, which counts in no sum.
        """
        s, lanes = self.s, self.lanes
        base = s.let("base", broadcast(base_of(self.largest_of(query)), lanes))
        sums = self._of_each_column("weight_sums", 0.0)

        def use(n: int, place: At, logits: Expr) -> None:
            weight = s.let("weight", exp2(s, logits - base, lanes))
            save(s, *place, weight, lanes)
            s.store(sums, n, sums[n] + weight)

        self._each(query, use)
        total = self._without_padding(sums, 0.0, lambda a, b: a + b)
        save(s, *self.total(query), total, lanes)

    def _of_each_column(self, name: str, value: float) -> tirx.Buffer:
        """Return registers for each vector of a row, or two for one, so that fewer steps wait."""
        count = max(self.vectors, 2)
        array = self.s.registers(name, count, vector_type(self.lanes))
        for n in range(count):
            self.s.store(array, n, broadcast(value, self.lanes))
        return array

    def _without_padding(
        self, array: tirx.Buffer, value: float, combine: Callable[[Expr, Expr], Expr]
    ) -> Expr:
        """Return all vectors of `_of_each_column` combined, `value` in place of taps that pad."""
        vectors = []
        for n in range(max(self.vectors, 2)):
            used = max(0, min(self.lanes, self.columns - n % self.vectors * self.lanes))
            vectors.append(_first_lanes(array[n], used, self.lanes, value))
        return functools.reduce(combine, vectors)

    def largest_of(self, query: Expr) -> Expr:
        """Return a query's largest logit, which `find_largest` wrote."""
        return load(*self.largest(query), 1)

    def total_of(self, query: Expr) -> Expr:
        """Return the sum of a query's weights; NaN if a logit was NaN or inf."""
        return folded(load(*self.total(query), self.lanes), self.lanes, lambda a, b: a + b)

    def _each(self, query: Expr, use: Callable[[int, At, Expr], None]) -> None:
        """Call `use` with each vector, its place, and its number for `_of_each_column`."""
        s, lanes, at = self.s, self.lanes, self.at(query)
        step_vectors = self.together * self.vectors
        with s.loop("step", self.rows // self.together) as step:
            for v in range(step_vectors):
                place = At(at.buffer, at.offset + (step * step_vectors + v) * lanes)
                use(v % max(self.vectors, 2), place, load(*place, lanes))


def base_of(largest: Expr, lanes: int = 1) -> Expr:
    """Return the number to subtract from logits: the largest logit, or 0 if that is -inf."""
    infinite = largest == broadcast(-math.inf, lanes)
    return tirx.Select(infinite, broadcast(0.0, lanes), largest)


def exp2(s: Statements, x: Expr, lanes: int) -> Expr:
    """Return 2^x of a vector with x <= 0; 0 below -126.5, NaN for NaN."""
    integer = vector_type(lanes, "int32")
    x = s.let("x", x)
    below = broadcast(_UNDERFLOW, lanes)
    # Not a maximum: that might lose a NaN.
    x = s.let("clamped", tirx.Select(x < below, below, x))
    n = s.let("n", tirx.call_llvm_pure_intrin(vector_type(lanes), "llvm.nearbyint", x))
    f = s.let("f", x - n)
    power = broadcast(_POWER[-1], lanes)
    for coefficient in reversed(_POWER[:-1]):
        power = multiply_add(power, f, broadcast(coefficient, lanes), lanes)
    bias, shift = (tirx.Broadcast(tirx.const(c, "int32"), lanes) for c in (127, 23))
    exponent = (n.astype(integer) + bias) << shift
    return power * tirx.reinterpret(vector_type(lanes), exponent)


def larger(a: Expr, b: Expr) -> Expr:
    """Return the larger of two numbers, or of vectors lane by lane; b if one is NaN."""
    return tirx.Select(a > b, a, b)


def _first_lanes(vector: Expr, count: int, lanes: int, value: float) -> Expr:
    """Return a vector with `value` in all lanes but the first `count`, whatever they hold."""
    if count == lanes:
        return vector
    lane = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), lanes)
    inside = lane < tirx.Broadcast(tirx.const(count, "int32"), lanes)
    return tirx.Select(inside, vector, broadcast(value, lanes))
