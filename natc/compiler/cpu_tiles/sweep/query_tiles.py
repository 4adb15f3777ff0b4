"""The rows of queries at hand, in tiles of 2 columns, and their products with keys and values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.products import At, scores
from natc.compiler.cpu_tiles.sweep.unit import Unit, least
from natc.compiler.cpu_tiles.vectors import broadcast, save

# More vectors of keys and their sums do not fit into registers.
_MOST_VECTORS = 4
# The row and the column of each query in its tile; a tile of one row has the first two.
ROW_OF = (0, 0, 1, 1)
COLUMN_OF = (0, 1, 0, 1)


class Tiles:
    """The queries of one or two rows of a strip; a tile at the end may hold a query twice."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def set_strip(self, first_key: Any, first: Any, end: Any) -> None:
        """Set a strip's first column of keys, and its columns of queries: first .. end-1."""
        self.first_key, self.first, self.end = first_key, first, end
        self.pairs = self.unit.s.let("pairs", tirx.truncdiv(end - first + 1, 2))

    def set_rows(self, row: Any, end: Any) -> None:
        """Set the rows of queries: `row` and the next one, unless that is `end`."""
        unit, s = self.unit, self.unit.s
        upper = s.let("upper", row)
        lower = s.let("lower", least(row + (unit.form.tile_rows - 1), end - 1))
        self.rows = (upper, lower)
        self.starts = tuple(s.let("start", unit.first_row(r)) for r in self.rows)
        self.is_one_row = upper == lower
        # By how much the lower row's windows begin later: 0 or 1.
        self.step = s.let("step", self.starts[1] - self.starts[0])

    @contextmanager
    def each_pair(self) -> Iterator[tuple[Any, Any]]:
        """Repeat the block for each plane of the windows, and there for each pair of columns.

        `window_plane` is the number of the plane, counted from the first of the windows.
        """
        s = self.unit.s
        with (
            s.loop("window_plane", self.unit.form.planes) as plane,
            s.loop("pair", self.pairs) as pair,
        ):
            self.window_plane = plane
            yield plane, pair

    def columns(self, pair: Any) -> tuple[Expr, Expr]:
        """Return the columns of a pair of queries, equal ones at the end of an odd row."""
        left_column = self.unit.s.let("left", self.first + pair * 2)
        return left_column, self.unit.s.let("right", least(left_column + 1, self.end - 1))

    def key_column(self, column: Any) -> Expr:
        """Return the column of the panels at which a query's window begins."""
        return self.unit.first_column(column) - self.first_key

    def taps(self, which: int | Expr, pair: Any, number: Any) -> At:
        """Return where a query's taps are; which: 0 for probabilities, 1 for their gradients."""
        form = self.unit.form
        index = (which * form.pairs + pair) * form.tile + number
        at = self.unit.at("taps", index * (form.planes * form.plane_taps))
        return At(at.buffer, self.unit.s.let("taps", at.offset))

    def vectors(self, which: int, pair: Any, number: int, columns: tuple[Any, Any]) -> At:
        """Return where a query (which = 0) or the gradient of its output (1) is, as float32."""
        unit, form = self.unit, self.unit.form
        if not form.copies_queries:
            name = ("query", "d_output")[which]
            return unit.place(name, self.rows[ROW_OF[number]], columns[COLUMN_OF[number]])
        index = (which * form.pairs + pair) * form.tile + number
        at = unit.at("queries", index * form.channels)
        return At(at.buffer, unit.s.let("place", at.offset))

    def copy_queries(self, pair: Any) -> None:
        """Convert the vectors of a tile's queries to float32."""
        unit, form = self.unit, self.unit.form
        columns = self.columns(pair)
        for which, name in enumerate(("query", "d_output")):
            for number in range(form.tile):
                at = unit.place(name, self.rows[ROW_OF[number]], columns[COLUMN_OF[number]])
                to = self.vectors(which, pair, number, columns)
                for channel in range(0, form.channels, form.lanes):
                    unit.store(to, channel, unit.floats(at, channel))

    def products(self, pair: Any) -> None:
        """Compute products of a tile's queries with keys, of its output gradients with values."""
        s, tile = self.unit.s, self.unit.form.tile
        columns = self.columns(pair)
        start = s.let("key_column", self.key_column(columns[0]))
        for which in range(2):
            queries = [self.vectors(which, pair, number, columns) for number in range(tile)]
            if self.unit.form.tile_rows == 1:
                self._rows_of_products(which, pair, queries, start, False)
                continue
            with s.when(self.is_one_row):
                self._rows_of_products(which, pair, queries[:2], start, False)
            with s.when(tirx.And(tirx.Not(self.is_one_row), self.step == 0)):
                self._rows_of_products(which, pair, queries, start, False)
            with s.when(self.step > 0):
                self._rows_of_products(which, pair, queries, start, True)

    def _rows_of_products(
        self, which: int, pair: Any, queries: list[At], start: Any, is_stepped: bool
    ) -> None:
        """Compute products with all rows of keys; is_stepped: lower windows begin a row later."""
        form = self.unit.form
        count = form.rows + is_stepped
        together = form.key_rows * form.tile // len(queries)
        groups = -(-count // together)
        sizes = [count // groups + (number < count % groups) for number in range(groups)]
        # Only half of the queries reach the first row and the last row. So these rows go into the
        # larger groups, if groups differ.
        sizes = [*sizes[:1], *sizes[2:], *sizes[1:2]]
        row = 0
        for size in sizes:
            for first in range(0, form.vectors, _MOST_VECTORS):
                vectors = range(first, min(first + _MOST_VECTORS, form.vectors))
                keys = itertools.product(range(row, row + size), vectors)
                self._products(which, pair, queries, start, list(keys), is_stepped)
            row += size

    def _products(
        self,
        which: int,
        pair: Any,
        queries: list[At],
        start: Any,
        vectors: list[tuple[int, int]],
        is_stepped: bool,
    ) -> None:
        """Compute products with some vectors of keys; vectors: row and number of each."""
        unit, s, form = self.unit, self.unit.s, self.unit.form
        panel = form.channels * form.strip
        begins, taps = {}, {}
        for row in dict.fromkeys(row for row, _ in vectors):
            slot = unit.slot(self.window_plane, self.starts[0] + row)
            begin = unit.at("channels", which * form.panel + start).offset
            begins[row] = s.let("keys", begin + slot * panel)
        keys = {
            (row, vector): At(unit.scratch, begins[row] + vector * form.lanes)
            for row, vector in vectors
        }
        for number in range(len(queries)):
            at = self.taps(which, pair, number).offset
            taps[number] = s.let("taps", at + self.window_plane * form.plane_taps)

        def tap_row(number: int, row: int) -> int:
            return row - (is_stepped and ROW_OF[number])

        def result(number: int, key: tuple[int, int], value: Expr) -> None:
            offset = tap_row(number, key[0]) * form.padded + key[1] * form.lanes
            save(s, unit.scratch, taps[number] + offset, value, form.lanes)

        scores(
            s,
            dict(enumerate(queries)),
            keys,
            [
                (number, key)
                for number in range(len(queries))
                for key in keys
                if 0 <= tap_row(number, key[0]) < form.rows
            ],
            first=lambda number, key: broadcast(0.0, form.lanes),
            result=result,
            channels=form.channels,
            channel_stride=form.strip,
            lanes=form.lanes,
        )
