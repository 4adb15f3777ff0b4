"""From products to probabilities and gradients of logits, and to the gradient of the bias.

The softmax is recomputed from the logits at hand. So probabilities have the sum 1 however large
the logits are, and neither the forward's output nor its logsumexp is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.products import At
from natc.compiler.cpu_tiles.sweep.query_tiles import Tiles
from natc.compiler.cpu_tiles.vectors import broadcast, folded, multiply_add, save, vector_type
from natc.compiler.statements import Statements

# Below this, exp(x) is 0 in float32 to within half a unit of the smallest normal number.
_UNDERFLOW = -87.0
# log(2) in two parts: the first has few bits, so that its multiples are exact.
_LOG2_HIGH = 0.693359375
_LOG2_LOW = math.log(2.0) - _LOG2_HIGH
# The remainder of the series is below 1.2e-7 of its value.
_DEGREE = 6
# Adding this to a small number and subtracting it again rounds the number to an integer.
_ROUNDING = 1.5 * 2.0**23


class _Query:
    """One query of the strip: where its taps, its bias and its sums are."""

    def __init__(self, tiles: Tiles, number: Any) -> None:
        unit = self.unit = tiles.unit
        s, form = unit.s, unit.form
        self.number = number
        pair = s.let("pair", tirx.truncdiv(number, form.tile))
        in_tile = s.let("in_tile", tirx.bitwise_and(number, form.tile - 1))
        is_right = s.let("is_right", tirx.bitwise_and(in_tile, 1))
        is_lower = in_tile >= 2
        left_column, right_column = tiles.columns(pair)
        row = s.let("row", tirx.Select(is_lower, tiles.rows[1], tiles.rows[0]))
        start = tirx.Select(is_lower, tiles.starts[1], tiles.starts[0])
        column = s.let("column", tirx.Select(is_right > 0, right_column, left_column))
        begin = s.let("begin", unit.first_column(left_column))
        # The first lane of a row's vectors that is a tap of this query.
        self.shift = s.let("shift", unit.first_column(column) - begin)
        self.taps = [tiles.taps(which, pair, in_tile) for which in (0, 1)]
        self.row, self.column = row, column
        # The last tile of a row, or the last row, may have a query twice.
        again = tirx.Or(
            tirx.And(is_lower, tiles.is_one_row),
            tirx.And(is_right > 0, right_column == left_column),
        )
        self.is_new = tirx.Not(again)
        offset = (start - row + form.rows - 1) * form.bias_row + begin - column + form.columns
        offset += (unit.first_plane - unit.plane + form.planes - 1) * form.bias_plane
        self.offset = s.let("offset", offset)
        self.table = is_right

    @contextmanager
    def each_plane(self) -> Iterator[None]:
        """Repeat the block for each plane of the window."""
        with self.unit.s.loop("window_plane", self.unit.form.planes) as self.plane:
            yield

    def each(self) -> list[tuple[int, int]]:
        """Return row and vector of each vector of taps of a plane."""
        form = self.unit.form
        return [(row, vector) for row in range(form.rows) for vector in range(form.vectors)]

    def tap(self, which: int, row: int, vector: int) -> At:
        """Return where a vector of taps is."""
        form = self.unit.form
        at = self.taps[which]
        offset = at.offset + self.plane * form.plane_taps
        return At(at.buffer, offset + (row * form.padded + vector * form.lanes))

    def bias(self, part: str, row: int, vector: int, table: Any = 0) -> At:
        """Return where the bias of a vector of taps is, or its gradient."""
        form = self.unit.form
        offset = self.offset + self.plane * form.bias_plane
        offset += row * form.bias_row + vector * form.lanes
        return self.unit.at(part, offset + table * form.bias)

    def inside(self, vector: int, value: Expr, otherwise: float) -> Expr:
        """Return `value` with `otherwise` in the lanes that are no taps, whatever they hold."""
        form = self.unit.form
        first_tap = tirx.const(vector * form.lanes, "int32") - self.shift
        taps = tirx.Ramp(first_tap, tirx.const(1, "int32"), form.lanes)
        # One comparison instead of two: as an unsigned number, a negative tap is large.
        unsigned = taps.astype(f"uint32x{form.lanes}")
        limit = tirx.Broadcast(tirx.const(form.columns, "uint32"), form.lanes)
        return tirx.Select(unsigned < limit, value, broadcast(otherwise, form.lanes))


class Softmax:
    """The softmax of all queries at hand, in three steps, so that no step waits for sums."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles, self.unit = tiles, tiles.unit

    def compute(self) -> None:
        """Replace the tiles' products by probabilities and gradients of scaled products."""
        s = self.unit.s
        for step in (self._logits, self._weights, self._gradients):
            with s.loop("query", self.tiles.pairs * self.unit.form.tile) as number:
                query = _Query(self.tiles, number)
                with s.when(query.is_new):
                    step(query)
                if step == self._gradients:
                    with s.when(tirx.Not(query.is_new)):
                        self._clear(query)

    def _logits(self, query: _Query) -> None:
        """Compute a query's logits and the largest of them."""
        unit, s, lanes = self.unit, self.unit.s, self.unit.form.lanes
        scale = broadcast(unit.p["scale"], lanes)
        largest = s.registers("largest", 2, vector_type(lanes))
        for half in range(2):
            s.store(largest, half, broadcast(-math.inf, lanes))
        with query.each_plane():
            for count, (row, vector) in enumerate(query.each()):
                at = query.tap(0, row, vector)
                logit = unit.read(at)
                if unit.form.spec.rpb:
                    bias = unit.read(query.bias("bias", row, vector))
                    logit = multiply_add(logit, scale, bias, lanes)
                else:
                    logit = logit * scale
                logit = s.let("logit", query.inside(vector, logit, -math.inf))
                unit.store(at, 0, logit)
                s.store(largest, count % 2, tirx.max(logit, largest[count % 2]))
        most = s.let("most", tirx.max(largest[0], largest[1]))
        self._save("largest", query, folded(most, lanes, tirx.max))

    def _weights(self, query: _Query) -> None:
        """Compute weights exp(logit - largest), their sum, and the sum of weights x gradients."""
        unit, s, lanes = self.unit, self.unit.s, self.unit.form.lanes
        largest = s.let("largest", broadcast(self._load("largest", query), lanes))
        sums = s.registers("sums", 2, vector_type(lanes))
        for number in range(2):
            s.store(sums, number, broadcast(0.0, lanes))
        with query.each_plane():
            for row, vector in query.each():
                at = query.tap(0, row, vector)
                weight = s.let("weight", exponential(s, unit.read(at) - largest, lanes))
                unit.store(at, 0, weight)
                s.store(sums, 0, sums[0] + weight)
                gradient = query.inside(vector, unit.read(query.tap(1, row, vector)), 0.0)
                s.store(sums, 1, multiply_add(weight, gradient, sums[1], lanes))
        for number, part in enumerate(("total", "mean")):
            total = folded(s.let("sum", sums[number]), lanes, lambda a, b: a + b)
            self._save(part, query, total)

    def _gradients(self, query: _Query) -> None:
        """Compute probabilities and gradients of logits, and add the latter to the bias's."""
        unit, s, lanes = self.unit, self.unit.s, self.unit.form.lanes
        share = s.let("share", tirx.const(1.0, "float32") / self._load("total", query))
        d_lse = unit.place("d_lse", query.row, query.column)
        less = self._load("mean", query) * share - d_lse.buffer[d_lse.offset]
        less = s.let("less", broadcast(less, lanes))
        share = broadcast(share, lanes)
        scale = broadcast(unit.p["scale"], lanes)
        with query.each_plane():
            for row, vector in query.each():
                weight_at, gradient_at = query.tap(0, row, vector), query.tap(1, row, vector)
                probability = s.let("probability", unit.read(weight_at) * share)
                unit.store(weight_at, 0, probability)
                gradient = s.let("gradient", probability * (unit.read(gradient_at) - less))
                unit.store(gradient_at, 0, gradient * scale)
                if unit.form.spec.rpb:
                    at = query.bias("d_bias", row, vector, query.table)
                    unit.store(at, 0, unit.read(at) + query.inside(vector, gradient, 0.0))

    def _clear(self, query: _Query) -> None:
        """Write zeros for the second copy of a query, so that no sum counts the query twice."""
        for which in range(2):
            with query.each_plane():
                for row, vector in query.each():
                    nothing = broadcast(0.0, self.unit.form.lanes)
                    self.unit.store(query.tap(which, row, vector), 0, nothing)

    def _save(self, part: str, query: _Query, value: Expr) -> None:
        at = self.unit.at(part, query.number)
        save(self.unit.s, at.buffer, at.offset, value, 1)

    def _load(self, part: str, query: _Query) -> Expr:
        at = self.unit.at(part, query.number)
        return at.buffer[at.offset]


def exponential(s: Statements, x: Expr, lanes: int) -> Expr:
    """Return exp(x) of a vector with x <= 0; 0 below -87, NaN for NaN.

    exp(x) = 2^n exp(r) with n = round(x / log 2) and the Taylor series of exp(r).
    """

    def constant(value: float) -> Expr:
        return broadcast(value, lanes)

    kind = vector_type(lanes)
    x = s.let("x", x)
    is_low = x < constant(_UNDERFLOW)
    clamped = s.let("clamped", tirx.Select(is_low, constant(_UNDERFLOW), x))
    rounded = multiply_add(clamped, constant(1 / math.log(2.0)), constant(_ROUNDING), lanes)
    # Without the fence, the compiler could reorder the sums and undo the rounding.
    rounded = s.let("rounded", tirx.call_llvm_pure_intrin(kind, "llvm.arithmetic.fence", rounded))
    n = s.let("n", rounded - constant(_ROUNDING))
    r = multiply_add(n, constant(-_LOG2_HIGH), clamped, lanes)
    r = s.let("r", multiply_add(n, constant(-_LOG2_LOW), r, lanes))
    series = constant(1 / math.factorial(_DEGREE))
    for degree in reversed(range(_DEGREE)):
        series = multiply_add(series, r, constant(1 / math.factorial(degree)), lanes)
    integer = vector_type(lanes, "int32")
    # The lowest bits of `rounded` are n; shifted, they are added to the exponent.
    power = tirx.reinterpret(integer, rounded) << tirx.Broadcast(tirx.const(23, "int32"), lanes)
    result = tirx.reinterpret(kind, tirx.reinterpret(integer, series) + power)
    return tirx.Select(is_low, constant(0.0), result)
