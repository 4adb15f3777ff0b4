"""The forward as tiles of queries: keys in the lanes of vectors, panels of keys in the caches.

The work is divided into units: a head, a dilation group, a frame of queries, a band of rows and a
strip of columns. A unit goes down its rows. For each tile of rows, it copies the keys and values
that no row before needed into a ring of rows, and computes scores, softmax and weighted sums of
the strip's queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.call import ForwardCall, window_start
from natc.compiler.cpu_tiles.panels import Source, pack_channels, pack_tokens
from natc.compiler.cpu_tiles.plan import Plan
from natc.compiler.cpu_tiles.products import At, scores, weighted_sum
from natc.compiler.cpu_tiles.softmax import Softmaxes, base_of
from natc.compiler.cpu_tiles.vectors import broadcast, load, save
from natc.compiler.statements import Statements

_LOG2_E = 1 / math.log(2.0)


class Forward:
    """The statements of a forward, added to `s` step by step.

    p: the function's parameters by name. keeps_lse: whether the call wants the logsumexp.
    """

    def __init__(
        self, s: Statements, p: Mapping[str, Any], plan: Plan, *, keeps_lse: Expr
    ) -> None:
        self.s, self.p, self.plan, self.keeps_lse = s, p, plan, keeps_lse
        self.call = ForwardCall(s, p, plan.spec)
        self.parts = plan.layout()

    def all_units(self) -> None:
        """Compute everything, divided among threads."""
        s, call, plan = self.s, self.call, self.plan
        rows = plan.window[1]
        shortest = [tirx.truncdiv(n, d) for n, d in zip(call.sizes, call.dilation)]
        longest = [tirx.truncdiv(n + (d - 1), d) for n, d in zip(call.sizes, call.dilation)]
        strips = self._divide(longest[2])
        units = call.batch * call.heads * longest[0] * strips
        for dilation in call.dilation:
            units = units * dilation
        units = s.let("units", units)
        # A band has enough rows that copying the rows around it takes a small share of the time.
        most = tirx.truncdiv(shortest[1], 4 * rows)
        bands = tirx.max(tirx.min(tirx.truncdiv(plan.units, units), most), 1)
        bands = s.let("bands", bands)
        tall = tirx.truncdiv(longest[1] + (bands - 1), bands)
        tall = tirx.truncdiv(tall + (plan.tile_rows - 1), plan.tile_rows) * plan.tile_rows
        tall = s.let("band_rows", tall)

        with s.parallel("unit", units * bands) as unit:
            quotient = unit
            indices = []
            # Heads first: their tokens are neighbors in memory.
            counts = [call.heads, strips, bands, longest[0], *reversed(call.dilation)]
            for count in counts:
                indices.append(s.let("index", tirx.truncmod(quotient, count)))
                quotient = s.let("quotient", tirx.truncdiv(quotient, count))
            head, strip, band, frame, group_2, group_1, group_0 = indices
            call.locate(quotient, head, [group_0, group_1, group_2])
            self.scratch = tirx.decl_buffer((self.parts["end"],), "float32", "scratch")
            s.add(tirx.AllocBuffer(self.scratch))
            self.frame = frame
            first = s.let("first_row", band * tall)
            end = s.let("end_row", tirx.min(first + tall, call.members[1]))
            with s.when(frame < call.members[0]), s.when(first < end):
                self._strip(strip)
                with s.when(self.first_column < self.end_column):
                    self._unit(first, end)

    def _at(self, part: str, offset: Any = 0) -> At:
        return At(self.scratch, self.parts[part] + offset)

    def _divide(self, longest: Any) -> Any:
        """Return the number of strips of a row of `longest` columns."""
        s, plan, columns = self.s, self.plan, self.plan.window[2]
        starts = s.let("starts", longest - (columns - 1))
        strips = s.let("strips", tirx.truncdiv(starts + (plan.starts - 1), plan.starts))
        # As many in each strip, in whole tiles.
        share = tirx.truncdiv(starts + (strips - 1), strips)
        tiles = tirx.truncdiv(share + (plan.tile_columns - 1), plan.tile_columns)
        self.starts_each = s.let("starts_each", tirx.min(tiles * plan.tile_columns, plan.starts))
        return strips

    def _strip(self, strip: Any) -> None:
        """Set the columns of a strip's keys, and of the queries whose windows begin there."""
        s, columns, members = self.s, self.plan.window[2], self.call.members[2]
        half = columns // 2
        first = s.let("first_key", strip * self.starts_each)
        first_of_next = first + self.starts_each
        self.first_key = first
        self.tokens = s.let("tokens", tirx.min(members - first, self.plan.strip))
        self.first_column = s.let(
            "first_column", tirx.Select(strip == 0, tirx.const(0, "int32"), first + half)
        )
        is_last = first_of_next > members - columns
        end = tirx.Select(is_last, members, first_of_next + half)
        # A shorter group has no such strip.
        end = tirx.Select(first > members - columns, tirx.const(0, "int32"), end)
        self.end_column = s.let("end_column", end)

    def _unit(self, first: Any, end: Any) -> None:
        s, call, plan = self.s, self.call, self.plan
        frames, rows, _ = plan.window
        self.first_frame = s.let("first_frame", window_start(self.frame, call.members[0], frames))
        self.scale = s.let("scale_2", self.p["scale"] * tirx.const(_LOG2_E, "float32"))
        if plan.spec.rpb:
            self._copy_bias()
        steps = tirx.truncdiv(end - first + (plan.tile_rows - 1), plan.tile_rows)
        with s.loop("tile_row", steps) as step:
            row = s.let("row", first + step * plan.tile_rows)
            last = s.let("last_row", tirx.min(row + (plan.tile_rows - 1), end - 1))
            start = s.let("start", window_start(row, call.members[1], rows))
            last_start = s.let("last_start", window_start(last, call.members[1], rows))
            before = window_start(row - 1, call.members[1], rows) + rows
            new = s.let("new", tirx.Select(step == 0, start, before))
            self._pack(new, last_start + rows)
            self._copy_queries(row, last)
            self._scores(row, last, start, last_start)
            self._softmax(row, last)
            self._sums(row, last, start, last_start)

    def _copy_bias(self) -> None:
        """Copy the head's bias to the base of two, with room around each row."""
        s, plan = self.s, self.plan
        frames, rows, columns = plan.window
        with (
            s.loop("f", 2 * frames - 1) as f,
            s.loop("r", 2 * rows - 1) as r,
            s.loop("c", 2 * columns - 1) as c,
        ):
            at = self._at("bias", (f * (2 * rows - 1) + r) * plan.bias_row + plan.bias_front + c)
            value = self.call.bias([f, r, c]) * tirx.const(_LOG2_E, "float32")
            save(s, at.buffer, at.offset, value, 1)

    def _slot(self, frame: Any, row: Any) -> Any:
        """Return the number of a row of keys in the panels."""
        return frame * self.plan.ring + tirx.bitwise_and(row, self.plan.ring - 1)

    def _pack(self, row: Any, end: Any) -> None:
        """Copy rows row .. end-1 of each frame of the window into the panels."""
        s, plan, call, lanes = self.s, self.plan, self.call, self.plan.lanes
        spec = plan.spec
        with s.loop("frame", plan.window[0]) as f, s.loop("new_row", end - row) as number:
            r = s.let("r", row + number)
            slot = s.let("slot", self._slot(f, r))

            def source(name: str) -> Source:
                return lambda token, channel: call.vector(
                    name, [self.first_frame + f, r, self._key_column(token)], channel, lanes
                )

            keys = self._at("keys", slot * (plan.key_width * spec.head_dim))
            pack_channels(
                s, source("key"), keys,
                tokens=self.tokens, channels=spec.head_dim, width=plan.key_width, lanes=lanes,
            )  # fmt: skip
            values = self._at("values", slot * (plan.key_width * spec.value_dim))
            pack_tokens(
                s, source("value"), values,
                tokens=self.tokens, channels=spec.value_dim, lanes=lanes,
            )  # fmt: skip

    def _key_column(self, token: Any) -> Any:
        """Return the column of a token of the panels."""
        return self.first_key + token

    def _scores(self, row: Any, last: Any, start: Any, last_start: Any) -> None:
        """Compute the logits of the strip's queries in rows row .. last."""
        s, plan, call = self.s, self.plan, self.call
        wide, columns = plan.tile_columns, plan.window[2]
        count = tirx.truncdiv(self.end_column - self.first_column + (wide - 1), wide)
        with s.loop("tile", count) as tile:
            column = s.let("column", self.first_column + tile * wide)
            # Scores of queries beyond the strip are computed, but not read.
            at = [column + z for z in range(wide)]
            starts = [s.let("begin", window_start(c, call.members[2], columns)) for c in at]
            rows = [row, last][: plan.tile_rows]
            begin = (start, last_start)[: plan.tile_rows]
            if plan.tile_rows == 1:
                self._tile(tile, rows, begin, at, starts, shift=0)
            else:
                with s.when(start == last_start):
                    self._tile(tile, rows, begin, at, starts, shift=0)
                with s.when(start != last_start):
                    self._tile(tile, rows, begin, at, starts, shift=1)

    def _copy_queries(self, row: Any, last: Any) -> None:
        """Copy the strip's queries in rows row .. last, times scale."""
        s, plan, lanes = self.s, self.plan, self.plan.lanes
        scale = s.let("scale", broadcast(self.scale, lanes))
        with (
            s.loop("query_row", last - row + 1) as y,
            s.loop("query_column", self.end_column - self.first_column) as column,
        ):
            at = self._at("queries", (column * plan.tile_rows + y) * plan.spec.head_dim)
            members = [self.frame, row + y, self.first_column + column]
            for channel in range(0, plan.spec.head_dim, lanes):
                query = self.call.vector("query", members, channel, lanes)
                save(s, at.buffer, at.offset + channel, query * scale, lanes)

    def _tile(
        self, tile: Any, rows: Any, begin: Any, columns: Any, starts: Any, *, shift: int
    ) -> None:
        """Compute the logits of a tile; shift: rows from its first window to its last."""
        s, plan = self.s, self.plan
        frames, height, width = plan.window
        lanes, wide = plan.lanes, plan.tile_columns
        queries = {
            (y, z): self._at(
                "queries", ((tile * wide + z) * plan.tile_rows + y) * plan.spec.head_dim
            )
            for y in range(len(rows))
            for z in range(wide)
        }
        vectors = [(r, v) for r in range(height + shift) for v in range(plan.vectors)]
        with s.loop("frame", frames) as f:
            first_lane = s.let("first_lane", starts[0] - self.first_key)
            for keys in _even_parts(vectors, plan.key_vectors):

                def in_window(query: tuple[int, int], key: tuple[int, int]) -> bool:
                    return 0 <= key[0] - query[0] * shift < height

                def key_at(key: tuple[int, int]) -> At:
                    slot = self._slot(f, begin[0] + key[0])
                    offset = slot * (plan.key_width * plan.spec.head_dim) + first_lane
                    at = self._at("keys", offset + key[1] * lanes)
                    return At(at.buffer, s.let("key_at", at.offset))

                def bias(query: tuple[int, int], key: tuple[int, int]) -> Expr:
                    if not plan.spec.rpb:
                        return broadcast(0.0, lanes)
                    y, z = query
                    frame = self.first_frame + f - self.frame + (frames - 1)
                    r = begin[0] + key[0] - rows[y] + (height - 1)
                    c = starts[0] - columns[z] + (width - 1) + key[1] * lanes + plan.bias_front
                    offset = (frame * (2 * height - 1) + r) * plan.bias_row + c
                    return load(*self._at("bias", offset), lanes)

                def store(query: tuple[int, int], key: tuple[int, int], value: Expr) -> None:
                    y, z = query
                    number = (tile * wide + z) * plan.tile_rows + y
                    a = f * height + key[0] - y * shift
                    offset = number * plan.query_scores + a * plan.padded + key[1] * lanes
                    at = self._at("scores", offset - (starts[z] - starts[0]))
                    save(s, at.buffer, at.offset, value, lanes)

                scores(
                    s, queries, {key: key_at(key) for key in keys},
                    [(q, key) for q in queries for key in keys if in_window(q, key)],
                    first=bias, result=store, channels=plan.spec.head_dim,
                    channel_stride=plan.key_width, lanes=lanes, unroll=plan.unroll,
                )  # fmt: skip

    def _softmax(self, row: Any, last: Any) -> None:
        """Turn the strip's logits into weights, and keep the inverse of their sums."""
        s, plan = self.s, self.plan
        frames, height, width = plan.window
        softmaxes = Softmaxes(
            s, lambda n: self._at("scores", n * plan.query_scores),
            lambda n: self._at("largest", n), lambda n: self._at("totals", n * plan.lanes),
            rows=frames * height, columns=width, padded=plan.padded, lanes=plan.lanes,
        )  # fmt: skip
        columns, count = self.end_column - self.first_column, last - row + 1
        for step in (softmaxes.find_largest, softmaxes.weigh):
            # Weights of queries beyond the rows are computed, but not read.
            with s.loop("query", columns * plan.tile_rows) as query:
                step(query)
        with s.loop("query_column", columns) as column, s.loop("query_row", count) as y:
            query = s.let("query", column * plan.tile_rows + y)
            total = s.let("total", softmaxes.total_of(query))
            save(s, *self._at("inverse", query), tirx.const(1.0, "float32") / total, 1)
            with s.when(self.keeps_lse):
                largest = s.let("largest", softmaxes.largest_of(query))
                finite = base_of(largest) * tirx.const(math.log(2.0), "float32") + tirx.log(total)
                is_infinite = largest == tirx.const(math.inf, "float32")
                members = [self.frame, row + y, self.first_column + column]
                lse, index = self.call.index("lse", members)
                save(s, lse, index, tirx.Select(is_infinite, largest, finite), 1)

    def _sums(self, row: Any, last: Any, start: Any, last_start: Any) -> None:
        """Write the output of the strip's queries in rows row .. last.

        Windows of adjacent columns begin at adjacent keys; those near a border at the same key.
        """
        s, plan = self.s, self.plan
        half = plan.window[2] // 2
        inner = tirx.min(self.end_column, half)
        right = tirx.max(
            tirx.min(self.end_column, self.call.members[2] - (plan.window[2] - 1 - half)),
            self.first_column,
        )
        inner = s.let("inner", tirx.max(inner, self.first_column))
        right = s.let("right", right)
        with s.loop("query_row", last - row + 1) as y:
            i = s.let("i", row + y)
            begin = s.let("begin", tirx.Select(y == 0, start, last_start))
            self._segment(i, y, begin, inner, right, shift=1)
            with s.loop("side", 2) as side:
                first = s.let("first", tirx.Select(side == 0, self.first_column, right))
                end = s.let("end", tirx.Select(side == 0, inner, self.end_column))
                self._segment(i, y, begin, first, end, shift=0)

    def _segment(self, i: Any, y: Any, begin: Any, first: Any, end: Any, *, shift: int) -> None:
        """Write the output of columns first .. end-1, in groups that are as even as can be."""
        s, most = self.s, self.plan.sum_queries
        count = s.let("count", tirx.max(end - first, 0))
        groups = s.let("groups", tirx.truncdiv(count + (most - 1), most))
        with s.loop("group", groups) as group:
            j = s.let("j", first + tirx.truncdiv(count * group, groups))
            size = s.let("size", first + tirx.truncdiv(count * (group + 1), groups) - j)
            for queries in reversed(range(1, most + 1)):
                with s.when(size == queries):
                    self._group(i, y, begin, j, queries, shift)

    def _weights(
        self, column: Any, y: Any
    ) -> tuple[Callable[[int], Callable[[Any], At]], Callable[[int], At]]:
        """Return where the weights, by row, and the inverse of their sum are, of a query.

        A query is q columns beside column `column` of the strip, in row y of the tiles.
        """
        plan = self.plan
        number = self.s.let("number", column * plan.tile_rows + y)

        def weights(q: int) -> Callable[[Any], At]:
            slot = number + q * plan.tile_rows
            return lambda r: self._at("scores", slot * plan.query_scores + r * plan.padded)

        return weights, lambda q: self._at("inverse", number + q * plan.tile_rows)

    def _group(self, i: Any, y: Any, begin: Any, j: Any, queries: int, shift: int) -> None:
        s, plan, spec, lanes = self.s, self.plan, self.plan.spec, self.plan.lanes
        frames, height, width = plan.window
        start = s.let("start", window_start(j, self.call.members[2], width) - self.first_key)
        weights, inverse = self._weights(j - self.first_column, y)

        def values(channel: int) -> Callable[[Any], At]:
            def of_row(r: Any) -> At:
                frame = tirx.truncdiv(r, height) if frames > 1 else tirx.const(0, "int32")
                slot = self._slot(frame, begin + (r - frame * height))
                offset = (slot * plan.key_width + start) * spec.value_dim + channel
                at = self._at("values", offset)
                return At(at.buffer, s.let("values_at", at.offset))

            return of_row

        for channel in range(0, spec.value_dim, plan.sum_vectors * lanes):
            vectors = min(plan.sum_vectors, (spec.value_dim - channel) // lanes)

            def result(q: int, v: int, total: Expr, channel: int = channel) -> None:
                at = inverse(q)
                scaled = total * broadcast(at.buffer[at.offset], lanes)
                members = [self.frame, i, j + q]
                tensor, index = self.call.index("output", members, channel + v * lanes)
                dtype = spec.dtype if lanes == 1 else f"{spec.dtype}x{lanes}"
                save(s, tensor, index, scaled.astype(dtype), lanes)

            weighted_sum(
                s, [(q * shift, weights(q)) for q in range(queries)], values(channel),
                rows=frames * height, taps=width, result=result, vectors=vectors,
                value_stride=spec.value_dim, weight_stride=plan.weight_stride, lanes=lanes,
            )  # fmt: skip


def _even_parts(items: list[Any], most: int) -> list[list[Any]]:
    """Split items into the fewest parts of at most `most` items; larger parts are outside."""
    count = -(-len(items) // most)
    sizes = [len(items) // count + (n < len(items) % count) for n in range(count)]
    if count > 2:
        # The first and the last rows of keys have fewer queries.
        sizes.append(sizes.pop(1))
    parts, at = [], 0
    for size in sizes:
        parts.append(items[at : at + size])
        at += size
    return parts
