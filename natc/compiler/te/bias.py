"""The gradient of the relative positional bias: sums over queries, chunk by chunk.

Each entry of the bias belongs to an offset from query to key. For each chunk of queries and each
offset, the sum runs over the queries of the chunk whose window has a key at that offset; the
caller adds the chunks up. So every sum has one order, however many threads there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc import window
from natc.compiler.te.axis import window_at
from natc.compiler.te.exponential import Exponential
from natc.compiler.te.gather import all_of, joined_tap
from natc.compiler.te.logits import Normalizer, d_logit_of, logit_of
from natc.compiler.te.problem import Problem, stage
from natc.operations import HEADS_FIRST, HEADS_LAST
from natc.spec import KernelSpec

Indices = Sequence[Expr]
# Takes chunk c, head h, number m of the query in its chunk, and an offset index for each axis.
OfOffset = Callable[[Expr, Expr, Expr, Indices], Expr]


class Chunks:
    """Integer tables for query m of chunk c, and for each offset index r of an axis.

    batch [c, m]: the query's batch entry. For each axis: position [c, m] of the query; low [c, m],
    the offset index of its tap 0; key [c, m, r], the key's position at offset r; attended
    [c, m, r], 1 if the window has a key at offset r, else 0.
    """

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.offsets = [2 * k - 1 for k in p.spec.kernel_size]
        self.chunks = te.var("chunks")
        self._total = math.prod(p.sizes, start=p.batch)
        # All chunks have this length, but the last ones may hold fewer queries, or none.
        self.length = tirx.truncdiv(self._total + self.chunks - 1, self.chunks)
        self.names = ["c", "h", "m", *(f"r{a}" for a in range(p.rank))]
        self.batch = self.table("batch_of_query", lambda c, m: self._quotient(c, m, p.sizes))
        self.position = [self._position(axis) for axis in range(p.rank)]
        self.low = [self._low(axis) for axis in range(p.rank)]
        self.key = [self._key(axis) for axis in range(p.rank)]
        self.attended = [self._attended(axis) for axis in range(p.rank)]

    def table(self, name: str, value: Callable[..., Expr], **inner: int) -> te.Tensor:
        """Return a stage [c, m] or, for the name and length of one more index, [c, m, inner]."""
        shape = (self.chunks, self.length, *inner.values())
        return stage(shape, ["c", "m", *inner], value, name)

    def exists(self, c: Expr, m: Expr) -> Expr:
        """Return whether chunk c has a query number m."""
        return self._number(c, m) < self._total

    def tap(self, c: Expr, m: Expr, offsets: Indices) -> list[Expr]:
        """Return the tap at an offset on each axis; clamped if the window has no such tap."""
        return [
            te.max(te.min(r - low[c, m], k - 1), 0)
            for r, low, k in zip(offsets, self.low, self.p.spec.kernel_size)
        ]

    def sum(self, value: OfOffset) -> te.Tensor:
        """Return the sum of `value` over the queries of each chunk."""
        p = self.p
        # A stage of its own, so that a schedule can skip it at offsets without a pair.
        weight = stage(
            (self.chunks, p.heads, self.length, *self.offsets),
            self.names,
            lambda c, h, m, *r: tirx.if_then_else(
                all_of([table[c, m, at] > 0 for table, at in zip(self.attended, r)]),
                value(c, h, m, r),
                p.const(0.0),
            ),
            "weight",
        )
        m = te.reduce_axis((0, self.length), "m")
        return stage(
            (self.chunks, p.heads, *self.offsets),
            ["c", "h", *self.names[3:]],
            lambda c, h, *r: te.sum(weight(c, h, m, *r), m),
            "output",
        )

    def _number(self, c: Expr, m: Expr) -> Expr:
        return c * self.length + m

    def _quotient(self, c: Expr, m: Expr, sizes: Sequence[Expr]) -> Expr:
        """Return the query's number divided by `sizes`; the last query's if there is no such."""
        quotient = te.min(self._number(c, m), self._total - 1)
        for size in reversed(sizes):
            quotient = tirx.truncdiv(quotient, size)
        return quotient

    def _position(self, axis: int) -> te.Tensor:
        size, inner = self.p.sizes[axis], self.p.sizes[axis + 1 :]
        return self.table(
            f"position_{axis}", lambda c, m: tirx.truncmod(self._quotient(c, m, inner), size)
        )

    def _window(self, axis: int, c: Expr, m: Expr) -> window.Window:
        return window_at(self.p, axis, self.position[axis][c, m])

    def _low(self, axis: int) -> te.Tensor:
        k = self.p.spec.kernel_size[axis]
        return self.table(
            f"low_{axis}", lambda c, m: window.rpb_index(self._window(axis, c, m), 0, k)
        )

    def _key(self, axis: int) -> te.Tensor:
        def value(c: tirx.Var, m: tirx.Var, r: tirx.Var) -> Expr:
            keys = self._window(axis, c, m)
            tap = te.max(te.min(r - self.low[axis][c, m], keys.count - 1), 0)
            return window.key_position(keys, tap, self.p.dilation[axis])

        return self.table(f"key_{axis}", value, r=self.offsets[axis])

    def _attended(self, axis: int) -> te.Tensor:
        def value(c: tirx.Var, m: tirx.Var, r: tirx.Var) -> Expr:
            tap = r - self.low[axis][c, m]
            count = self._window(axis, c, m).count
            return all_of([self.exists(c, m), tap >= 0, tap < count]).astype("int32")

        return self.table(f"attended_{axis}", value, r=self.offsets[axis])


def d_rpb(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function that computes `d_rpb` (`natc.operations`); formulas: `te.backward`."""
    p = Problem(spec, HEADS_LAST, exponential)
    query, d_output = p.tensor("query", spec.head_dim), p.tensor("d_output", spec.value_dim)
    key, value = p.kv_tensor("key", spec.head_dim), p.kv_tensor("value", spec.value_dim)
    rpb = p.bias()
    numbers = ("lse", "correction", "delta")
    lse, correction, delta = (p.tensor(name, dtype=spec.accumulator) for name in numbers)
    chunks = Chunks(p)

    def product(of_query: te.Tensor, of_key: te.Tensor, name: str) -> te.Tensor:
        d = te.reduce_axis((0, of_query.shape[-1]), "d")

        def dot(c: tirx.Var, h: tirx.Var, m: tirx.Var, *r: tirx.Var) -> Expr:
            b = chunks.batch[c, m]
            here = [position[c, m] for position in chunks.position]
            there = [table[c, m, at] for table, at in zip(chunks.key, r)]
            kv = tirx.truncdiv(h, p.group)
            query_element, key_element = of_query(b, *here, h, d), of_key(b, *there, kv, d)
            return te.sum(p.accumulate(query_element) * p.accumulate(key_element), d)

        shape = (chunks.chunks, p.heads, chunks.length, *chunks.offsets)
        return stage(shape, chunks.names, dot, name)

    scores, d_weights = product(query, key, "scores"), product(d_output, value, "d_weights")

    def d_logit(c: Expr, h: Expr, m: Expr, r: Indices) -> Expr:
        site = (chunks.batch[c, m], *(position[c, m] for position in chunks.position), h)
        logit = logit_of(p, scores(c, h, m, *r), rpb(h, *r))
        of_query = Normalizer(lse[site], correction[site])
        return d_logit_of(p, logit, of_query, d_weights(c, h, m, *r), delta[site])

    partial = chunks.sum(d_logit)
    return p.function([query, key, value, rpb, d_output, lse, correction, delta, partial])


def sum_rpb(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function that computes `sum_rpb` (`natc.operations`)."""
    p = Problem(spec, HEADS_FIRST, exponential)
    d_attn = p.tensor("d_attn", math.prod(spec.kernel_size))
    chunks = Chunks(p)

    def value(c: Expr, h: Expr, m: Expr, r: Indices) -> Expr:
        here = [position[c, m] for position in chunks.position]
        tap = joined_tap(chunks.tap(c, m, r), spec.kernel_size)
        return p.accumulate(d_attn(chunks.batch[c, m], h, *here, tap))

    return p.function([d_attn, chunks.sum(value)])
