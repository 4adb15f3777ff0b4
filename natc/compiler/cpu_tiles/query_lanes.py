"""The forward with adjacent queries in the lanes of vectors, for small windows.

A vector of queries is multiplied by a vector of keys for each tap. So no lane is outside a window,
however small that is, and the softmax needs no sums over lanes. Near a border, windows of adjacent
queries begin at the same key: there, lanes of keys are permuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.call import window_start
from natc.compiler.cpu_tiles.panels import pack_channels
from natc.compiler.cpu_tiles.products import At, dot_products
from natc.compiler.cpu_tiles.softmax import base_of, exp2, larger
from natc.compiler.cpu_tiles.tiled_forward import Forward
from natc.compiler.cpu_tiles.vectors import (
    broadcast,
    load,
    permuted,
    save,
    vector_type,
)

# A key of a tile's windows: row and column of the tap. A query of a tile: its row.
Key = tuple[int, int]


class QueryLanes(Forward):
    """The statements of a forward with queries in lanes."""

    def _divide(self, longest: Any) -> Any:
        """Return the number of strips of a row of `longest` columns."""
        s, lanes = self.s, self.plan.lanes
        tiles = s.let("tiles", tirx.truncdiv(longest + (lanes - 1), lanes))
        most = self.plan.strip // lanes
        strips = s.let("strips", tirx.truncdiv(tiles + (most - 1), most))
        each = tirx.truncdiv(tiles + (strips - 1), strips) * lanes
        self.columns_each = s.let("columns_each", each)
        return strips

    def _strip(self, strip: Any) -> None:
        """Set the columns of a strip's queries, and of the keys of their windows."""
        s, columns, members = self.s, self.plan.window[2], self.call.members[2]
        half = columns // 2
        self.first_column = s.let("first_column", strip * self.columns_each)
        end = tirx.min(self.first_column + self.columns_each, members)
        self.end_column = s.let("end_column", end)
        # May be negative: panels have columns before the map, too, so that vectors of keys are
        # aligned.
        first = tirx.min(self.first_column - half, members - columns)
        self.first_key = s.let("first_key", first)
        last = window_start(self.end_column - 1, members, columns) + columns
        self.tokens = s.let("tokens", last - first)

    def _key_column(self, token: Any) -> Any:
        """Return the column of a token of the panels; columns before the map are copies."""
        return tirx.max(self.first_key + token, 0)

    def _tiles(self) -> Any:
        """Return the number of tiles in a row of the strip."""
        lanes = self.plan.lanes
        return tirx.truncdiv(self.end_column - self.first_column + (lanes - 1), lanes)

    def _copy_queries(self, row: Any, last: Any) -> None:
        """Copy the strip's queries in rows row .. last, times scale, channel by channel."""
        s, plan, lanes = self.s, self.plan, self.plan.lanes
        scale = s.let("scale", broadcast(self.scale, lanes))
        channels = plan.spec.head_dim
        with s.loop("query_row", last - row + 1) as y:

            def source(token: Any, channel: Any) -> Expr:
                members = [self.frame, row + y, self.first_column + token]
                return self.call.vector("query", members, channel, lanes) * scale

            pack_channels(
                s, source, self._at("queries", y * (channels * plan.strip)),
                tokens=self.end_column - self.first_column, channels=channels,
                width=plan.strip, lanes=lanes,
            )  # fmt: skip

    def _scores(self, row: Any, last: Any, start: Any, last_start: Any) -> None:
        """Compute the logits of the strip's queries in rows row .. last."""
        s, plan, members = self.s, self.plan, self.call.members[2]
        lanes, columns = plan.lanes, plan.window[2]
        rows = [row, last][: plan.tile_rows]
        with s.loop("tile", self._tiles()) as tile:
            column = s.let("column", self.first_column + tile * lanes)
            end = s.let("end", tirx.min(column + lanes, self.end_column))
            half = columns // 2
            is_inner = tirx.And(column >= half, end <= members - columns + half + 1)
            is_inner = s.let("is_inner", is_inner)
            for shift in range(plan.tile_rows):
                fits = last_start - start == shift if plan.tile_rows > 1 else True
                with s.when(tirx.And(fits, is_inner)):
                    self._lanes(tile, rows, start, _Inner(self, column), shift)
                with s.when(tirx.And(fits, tirx.Not(is_inner))):
                    self._lanes(tile, rows, start, _Border(self, column, end), shift)

    def _lanes(self, tile: Any, rows: Any, start: Any, lanes_at: _Inner, shift: int) -> None:
        """Compute the logits of a tile; shift: rows from its first window to its last."""
        s, plan = self.s, self.plan
        frames, height, width = plan.window
        lanes, channels = plan.lanes, plan.spec.head_dim
        first = s.let("first_query", tile * lanes)

        def query(y: int) -> Callable[[Any], Expr]:
            at = self._at("queries", first + y * channels * plan.strip)
            return lambda c: load(at.buffer, at.offset + c * plan.strip, lanes)

        def users(key: Key) -> list[int]:
            return [y for y in range(len(rows)) if 0 <= key[0] - y * shift < height]

        with s.loop("frame", frames) as f:

            def key_vector(key: Key) -> Callable[[Any], Expr]:
                slot = self._slot(f, start + key[0])
                offset = slot * (plan.key_width * channels) + lanes_at.first + key[1]
                at = self._at("keys", s.let("key_at", offset))
                return lambda c: lanes_at.keys(
                    load(at.buffer, at.offset + c * plan.key_width, lanes)
                )

            def bias(y: int, key: Key) -> Expr:
                if not plan.spec.rpb:
                    return broadcast(0.0, lanes)
                frame = self.first_frame + f - self.frame + (frames - 1)
                r = start + key[0] - rows[y] + (height - 1)
                offset = (frame * (2 * height - 1) + r) * plan.bias_row + (width - 1) + key[1]
                return lanes_at.bias(self._at("bias", offset))

            def store(y: int, key: Key, value: Expr) -> None:
                tap = (f * height + key[0] - y * shift) * width + key[1]
                offset = (y * (frames * height * width) + tap) * plan.strip + first
                save(s, *self._at("scores", offset), value, lanes)

            keys = [(r, t) for r in range(height + shift) for t in range(width)]
            for part in parts(
                keys, lambda key: len(users(key)), plan.key_vectors * plan.tile_rows
            ):
                dot_products(
                    s, {y: query(y) for y in range(len(rows))},
                    {key: key_vector(key) for key in part},
                    [(y, key) for key in part for y in users(key)],
                    first=bias, result=store, channels=channels, lanes=lanes, unroll=plan.unroll,
                )  # fmt: skip

    def _softmax(self, row: Any, last: Any) -> None:
        """Turn the strip's logits into weights, and keep the inverse of their sums."""
        s, plan, lanes = self.s, self.plan, self.plan.lanes
        frames, height, width = plan.window
        kind = vector_type(lanes)
        with s.loop("query_row", last - row + 1) as y, s.loop("tile", self._tiles()) as tile:
            at = s.let("at", y * (frames * height * width * plan.strip) + tile * lanes)
            slot = s.let("slot", y * plan.strip + tile * lanes)

            def each_row(use: Callable[[int, At], None], at: Any = at) -> None:
                with s.loop("row", frames * height) as r:
                    for t in range(width):
                        use(t, self._at("scores", at + (r * width + t) * plan.strip))

            most = s.registers("most", width, kind)
            sums = s.registers("weight_sums", width, kind)
            for t in range(width):
                s.store(most, t, broadcast(-math.inf, lanes))
                s.store(sums, t, broadcast(0.0, lanes))
            each_row(lambda t, place: s.store(most, t, larger(load(*place, lanes), most[t])))
            largest = most[0]
            for t in range(1, width):
                largest = s.let("largest", larger(most[t], largest))
            base = s.let("base", base_of(largest, lanes))

            def weigh(t: int, place: At, base: Expr = base) -> None:
                weight = s.let("weight", exp2(s, load(*place, lanes) - base, lanes))
                save(s, *place, weight, lanes)
                s.store(sums, t, sums[t] + weight)

            each_row(weigh)
            total = sums[0]
            for t in range(1, width):
                total = s.let("total", total + sums[t])
            save(s, *self._at("largest", slot), largest, lanes)
            save(s, *self._at("inverse", slot), broadcast(1.0, lanes) / total, lanes)
        with s.when(self.keeps_lse):
            self._save_lse(row, last)

    def _save_lse(self, row: Any, last: Any) -> None:
        s, columns = self.s, self.end_column - self.first_column
        with s.loop("query_row", last - row + 1) as y, s.loop("column", columns) as column:
            slot = s.let("slot", y * self.plan.strip + column)
            largest = s.let("largest", load(*self._at("largest", slot), 1))
            inverse = load(*self._at("inverse", slot), 1)
            finite = base_of(largest) * tirx.const(math.log(2.0), "float32") - tirx.log(inverse)
            is_infinite = largest == tirx.const(math.inf, "float32")
            members = [self.frame, row + y, self.first_column + column]
            lse, index = self.call.index("lse", members)
            save(s, lse, index, tirx.Select(is_infinite, largest, finite), 1)

    def _weights(
        self, column: Any, y: Any
    ) -> tuple[Callable[[int], Callable[[Any], At]], Callable[[int], At]]:
        """Return where the weights, by row, and the inverse of their sum are, of a query.

        A query is q columns beside column `column` of the strip, in row y of the tiles.
        """
        plan = self.plan
        frames, height, width = plan.window
        first = self.s.let("first", y * (frames * height * width * plan.strip) + column)

        def weights(q: int) -> Callable[[Any], At]:
            return lambda r: self._at("scores", first + q + r * (width * plan.strip))

        return weights, lambda q: self._at("inverse", y * plan.strip + column + q)


class _Inner:
    """The keys of a tile whose windows begin at adjacent keys; first: in the panel."""

    def __init__(self, unit: QueryLanes, column: Any) -> None:
        self.s, self.lanes = unit.s, unit.plan.lanes
        half = unit.plan.window[2] // 2
        self.half = half
        self.first = self.s.let("first", column - half - unit.first_key)

    def keys(self, vector: Expr) -> Expr:
        """Return the keys of the lanes' queries; vector: adjacent keys from the first one on."""
        return vector

    def bias(self, at: At) -> Expr:
        """Return a tap's bias; at: the place of the bias of a window that begins at its query."""
        return broadcast(at.buffer[at.offset - self.half], self.lanes)


class _Border(_Inner):
    """The keys of a tile near a border, where windows may begin at the same key."""

    def __init__(self, unit: QueryLanes, column: Any, end: Any) -> None:
        s, lanes = unit.s, unit.plan.lanes
        self.s, self.lanes = s, lanes
        width, members = unit.plan.window[2], unit.call.members[2]

        def start(columns: Any) -> Any:
            return window_start(columns, members, width)

        def all_lanes(value: Any) -> Any:
            return tirx.Broadcast(tirx.convert(value), lanes)

        first = s.let("first", start(column))
        self.first = s.let("first", first - unit.first_key)
        ramp = tirx.Ramp(column, tirx.const(1, "int32"), lanes)
        columns = s.let("columns", tirx.min(ramp, all_lanes(end - 1)))
        begin = tirx.max(columns - all_lanes(width // 2), all_lanes(0))
        begin = s.let("begin", tirx.min(begin, all_lanes(members - width)))
        self.key_lanes = s.let("key_lanes", begin - all_lanes(first))
        # From a query to the first key of its window: the least in the last lane.
        self.least = s.let("least", start(end - 1) - (end - 1))
        self.bias_lanes = s.let("bias_lanes", begin - columns - all_lanes(self.least))

    def keys(self, vector: Expr) -> Expr:
        """Return the keys of the lanes' queries; vector: adjacent keys from the first one on."""
        return permuted(vector, self.key_lanes)

    def bias(self, at: At) -> Expr:
        """Return a tap's bias; at: the place of the bias of a window that begins at its query."""
        return permuted(load(at.buffer, at.offset + self.least, self.lanes), self.bias_lanes)


def parts(keys: list[Key], sums_of: Callable[[Key], int], most: int) -> list[list[Key]]:
    """Split keys into parts of at most `most` sums each, which are as even as can be."""
    total = sum(map(sums_of, keys))
    count = -(-total // most)
    while True:
        result: list[list[Key]] = [[]]
        before = 0
        for key in keys:
            if result[-1] and before + sums_of(key) > total * len(result) / count + 0.5:
                result.append([])
            result[-1].append(key)
            before += sums_of(key)
        if all(sum(map(sums_of, part)) <= most for part in result):
            return result
        count += 1
