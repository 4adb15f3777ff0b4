"""The gradient of the relative positional bias, for spaces that keep taps in vector lanes.

As in `te.bias`, sums run chunk by chunk. Here a row of a window's gradients is computed as vectors
and then added to the row of sums of its offsets. The row has zeros before and behind it, so that
it can be read from the position that belongs to the first offset.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.backward import Tensors, d_logits
from natc.compiler.te.bias import Chunks
from natc.compiler.te.exponential import Exponential
from natc.compiler.te.gather import all_of
from natc.compiler.te.problem import Problem, stage
from natc.compiler.te.rows import RowGather, filled_up
from natc.errors import SpecError
from natc.operations import HEADS_LAST
from natc.spec import KernelSpec


def d_rpb(spec: KernelSpec, exponential: Exponential, *, lanes: int) -> tirx.PrimFunc:
    """Return the function that computes `d_rpb` (`natc.operations`); lanes: see `te.rows`."""
    p = _ByChunk(spec, HEADS_LAST, exponential)
    t = Tensors(p)
    if t.rpb is None:
        raise SpecError(f"{spec.name} has no bias, so it has no d_rpb.")
    g = _ChunkGather(p, p.split(), lanes)
    scores = g.product(g.site_vector(t.query), g.tap_vector(t.key), "scores")
    d_weights = g.product(g.site_vector(t.d_output), g.tap_vector(t.value), "d_weights")
    lse, correction, delta = (g.scalar_of_site(x) for x in (t.lse, t.correction, t.delta))
    d_logit = d_logits(g, g.logits(scores, t.rpb), (lse, correction), d_weights, delta)
    rows = g.between_zeros(g.weights(d_logit))
    summed = g.sums_of_offsets(rows)
    partial = stage(
        (*summed.shape[:-1], t.rpb.shape[-1]),
        ["c", "h", *g.offset_names],
        lambda *at: summed[at],
        "output",
    )
    return p.function([*t.of_pairs(), partial])


class _ByChunk(Problem):
    """A problem whose sites are (chunk c, head h, query m of the chunk) after `split`."""

    def split(self) -> Chunks:
        """Make sites chunks, heads and queries from here on; return the chunks."""
        self._chunks = Chunks(self)
        self.site_names = ["c", "h", "m"]
        self.site_shape = [self._chunks.chunks, self.heads, self._chunks.length]
        return self._chunks

    def parts(self, site: Sequence[Expr]) -> tuple[Expr, list[Expr], Expr]:
        """Return batch, positions and head of a site (c, h, m)."""
        c, h, m = site
        return self._chunks.batch[c, m], [table[c, m] for table in self._chunks.position], h


class _ChunkGather(RowGather):
    """The queries of chunks, and the sums over them for each offset on each axis."""

    def __init__(self, p: Problem, chunks: Chunks, lanes: int) -> None:
        super().__init__(p, from_keys=False, lanes=lanes, tables=False, copies=False)
        self.offset_names = [f"r{axis}" for axis in range(p.rank)]
        self._kernel_size, self._chunks = p.spec.kernel_size, chunks
        # Zeros before a row: as many as there are offsets before the offset of tap 0, or a vector
        # (of a window of 1) so that `start` is read.
        self._before = filled_up(max(self._kernel_size[-1] - 1, 1), lanes)
        self._tables = [self._attended(axis) for axis in range(p.rank)]
        self._low = [self._low_of(axis) for axis in range(p.rank)]

    def attended(self, site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
        """Return whether site and tap are a pair."""
        c, _, m = site
        return all_of([table[c, m, t] > 0 for table, t in zip(self._tables, tap)])

    def between_zeros(self, weights: te.Tensor) -> te.Tensor:
        """Return weights with zeros before and behind each row."""
        p, lanes, before = self.problem, self._lanes, self._before
        offsets = filled_up(2 * self._kernel_size[-1] - 1, lanes)
        vectors = self.window[-1] // lanes

        def element(*at: tirx.Var) -> Expr:
            # By vectors: whether one lies inside depends on its number alone, which is a constant
            # once the loop is unrolled.
            number = tirx.floordiv(at[-1], lanes) - before // lanes
            tap = te.max(te.min(number, vectors - 1), 0) * lanes + tirx.floormod(at[-1], lanes)
            inside = all_of([number >= 0, number < vectors])
            return tirx.if_then_else(inside, weights(*at[:-1], tap), p.const(0.0))

        shape = (*p.site_shape, *self.window[:-1], before + offsets)
        return stage(shape, [*p.site_names, *p.tap_names], element, "between_zeros")

    def sums_of_offsets(self, rows: te.Tensor) -> te.Tensor:
        """Return the sums over the queries of each chunk, the last axis filled up to vectors."""
        p, chunks = self.problem, self._chunks
        offsets = list(chunks.offsets)
        offsets[-1] = filled_up(offsets[-1], self._lanes)
        rows_axes = range(p.rank - 1)
        # A window of 1 gets no table, since its only tap is 0: a schedule places every table, and
        # the compiler finds no bounds for a table that nothing reads.
        taps = [None if self._kernel_size[a] == 1 else self._tap(a) for a in rows_axes]
        reached = [self._reached(a) for a in rows_axes]
        # The index from which a row is read. It is the same for all vectors, but has an entry for
        # each: so the compiler only infers its bounds, and computes rows from their beginning.
        start = chunks.table(
            "start",
            lambda c, m, v: self._before - self._low[-1][c, m],
            v=offsets[-1] // self._lanes,
        )
        m = te.reduce_axis((0, chunks.length), "m")

        def value(c: tirx.Var, h: tirx.Var, *r: tirx.Var) -> Expr:
            row = [
                tirx.const(0) if tap is None else te.max(te.min(tap[c, m, at], k - 1), 0)
                for tap, at, k in zip(taps, r, self._kernel_size)
            ]
            first = start[c, m, tirx.floordiv(r[-1], self._lanes)]
            first = te.max(te.min(first, self._before), 0)
            weight = rows(c, h, m, *row, first + r[-1])
            if reached:
                inside = all_of([table[c, m, at] > 0 for table, at in zip(reached, r)])
                weight = tirx.Select(inside, weight, p.const(0.0))
            return te.sum(weight, m)

        return stage(
            (chunks.chunks, p.heads, *offsets), ["c", "h", *self.offset_names], value, "summed"
        )

    def _attended(self, axis: int) -> te.Tensor:
        """Return the table [c, m, t]: 1 if tap t of the query has a key, else 0."""
        chunks = self._chunks

        def value(c: tirx.Var, m: tirx.Var, t: tirx.Var) -> Expr:
            pair = self.axes[axis].attended(chunks.position[axis][c, m], t)
            return tirx.And(chunks.exists(c, m), pair).astype("int32")

        return chunks.table(f"attended_{axis}", value, t=self.axes[axis].taps)

    def _low_of(self, axis: int) -> te.Tensor:
        """Return the table [c, m]: the offset index of tap 0."""
        first, position = tirx.const(0), self._chunks.position[axis]
        return self._chunks.table(
            f"low_{axis}", lambda c, m: self.axes[axis].offset(position[c, m], first)
        )

    def _tap(self, axis: int) -> te.Tensor:
        """Return the table [c, m, r]: the tap at offset r, which may be negative or too large."""
        return self._chunks.table(
            f"tap_{axis}",
            lambda c, m, r: r - self._low[axis][c, m],
            r=self._chunks.offsets[axis],
        )

    def _reached(self, axis: int) -> te.Tensor:
        """Return the table [c, m, r]: 1 if the query's window has a key at offset r, else 0."""
        chunks = self._chunks

        def value(c: tirx.Var, m: tirx.Var, r: tirx.Var) -> Expr:
            tap = r - self._low[axis][c, m]
            pair = self.axes[axis].attended(chunks.position[axis][c, m], tap)
            return all_of([chunks.exists(c, m), tap >= 0, pair]).astype("int32")

        return chunks.table(f"reached_{axis}", value, r=chunks.offsets[axis])
