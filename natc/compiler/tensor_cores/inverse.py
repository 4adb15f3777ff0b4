"""Tiles of keys: the 16 keys of a warp, and the queries that attend to them.

A tile has the same shape as the forward's, with keys in the place of queries. On each axis the
queries that attend to its keys, its halo, are consecutive members of a dilation group. Their
number varies (at a border there are more), so a warp walks over the halo 16 queries at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc import window
from natc.compiler.statements import call
from natc.compiler.tensor_cores.kernel import RESIDENT, warp_candidates
from natc.compiler.tensor_cores.scores import rpb_at, within
from natc.compiler.tensor_cores.tile import HALF
from natc.compiler.tensor_cores.warp_tile import Tensor, TileWindow, WarpTile, is_below
from natc.spec import KernelSpec


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Adjacent warps of a block, which share queries through the cache; warps that one multiprocessor
    must be able to hold.
    """
    # First the largest number with which the compiler spills no registers.
    small = max(spec.head_dim, spec.value_dim) <= 32
    first = (16 if spec.rank < 3 else 12) if small else 8
    return {**warp_candidates(spec), RESIDENT: (first, *(n for n in (8, 12, 16) if n != first))}


class KeyTile(WarpTile):
    """The tile of keys of a warp.

    query_index: for each half and axis, the lane's own key. queries: for each half and axis, the
    queries that attend to that key. halo: for each axis, the queries that attend to any key of the
    tile.
    """

    def attend(self) -> None:
        """Compute `halo` and `queries`."""
        s = self.s
        self.lane = s.let("lane", 4 * self.row + self.column)
        self.halo: list[TileWindow] = []
        for number, axis in enumerate(self.axes):
            first = s.let(f"halo_{number}", self.queries_of(number, axis.start).first)
            last = tirx.min(axis.start + (self.tile.extents[number] - 1), axis.length - 1)
            to_last = self.queries_of(number, last)
            count = s.let(f"halo_count_{number}", to_last.first + to_last.count - first)
            self.halo.append(TileWindow(first, count))
        self.queries = self.halves(self.queries_of)

    def queries_of(self, number: int, index: Any) -> TileWindow:
        """Return the queries that attend to the key that is member `index`, on axis `number`."""
        return self.range_on_axis(window.queries_of, number, index)

    @contextmanager
    def steps(self) -> Iterator[QueryStep]:
        """Run the block in a loop over the halo, 16 queries at a time."""
        s, halo = self.s, self.halo
        width = self.tile.extents[-1]

        def steps_along(axis: int, extent: int) -> Any:
            return tirx.truncdiv(halo[axis].count + (extent - 1), extent)

        @contextmanager
        def planes() -> Iterator[Any | None]:
            if self.spec.rank < 3:
                yield None
                return
            with s.loop("plane", halo[0].count) as plane:
                yield s.let("plane_index", halo[0].first + plane)

        with planes() as plane, s.loop("across", steps_along(-1, width)) as across:
            columns = Columns(self, s.let("first_column", halo[-1].first + width * across))
            if self.tile.has_rows:
                with s.loop("down", steps_along(-2, 2)) as down:
                    yield QueryStep(columns, plane, s.let("first_row", halo[-2].first + 2 * down))
            else:
                yield QueryStep(columns, plane, None)


class Columns:
    """The last axis of a step: 8 queries, the same in both halves, or with one axis 16.

    A product over channels needs query `row` of each half in a lane (`own`); a product over
    queries needs queries 2 * `column` and the next of each half (`pair`). Of lse and delta a lane
    loads one number, for query `lane` modulo 16 (`single`).
    """

    def __init__(self, warp: KeyTile, first: Any) -> None:
        self.warp, self.first = warp, first
        s, axis, self.parts = warp.s, warp.axes[-1], 1 if warp.tile.has_rows else 2

        def position(name: str, member: Any) -> Any:
            # A query beyond the group attends to nothing, but the address must be valid.
            return s.let(name, axis.position(tirx.min(member, axis.length - 1)))

        first_of = [first + HALF * part for part in range(self.parts)]
        self.own = [position("own_position", f + warp.row) for f in first_of]
        self.pair = [
            [position("pair_position", f + 2 * warp.column + e) for e in range(2)]
            for f in first_of
        ]
        in_part = warp.lane & (HALF * self.parts - 1)
        self.single = position("single_position", first + in_part)
        # How far the lane's pair lies behind the first query that attends to the lane's key.
        self.behind = [
            s.let("behind", first + 2 * warp.column - warp.queries[half][-1].first)
            for half in range(self.parts)
        ]
        self.masks = [
            [s.let("mask", self._mask(half, key_half)) for key_half in range(self.parts)]
            for half in range(self.parts)
        ]
        self.bias: list[list[Any]] = []
        if "rpb" in warp.p:
            most = 2 * warp.spec.kernel_size[-1] - 2
            ahead = warp.axes[-1].start + warp.row - first - 2 * warp.column + most // 2
            apart = (0,) if warp.tile.has_rows else (-1, 0, 1)
            self.bias = [
                [s.let("bias_column", within(ahead + HALF * n - e, most)) for e in range(2)]
                for n in apart
            ]

    def _mask(self, half: int, key_half: int) -> Any:
        count = self.warp.queries[key_half][-1].count
        mask: Any = tirx.const(0, "uint32")
        for e, bits in enumerate((0xFFFF, 0xFFFF0000)):
            attends = is_below(self.behind[key_half] + (HALF * half + e), count)
            mask |= tirx.Select(attends, tirx.const(bits, "uint32"), tirx.const(0, "uint32"))
        return mask

    def of(self, half: int) -> int:
        """Return which part of the axis a half of 8 queries (or 8 keys) lies in."""
        return half if self.parts > 1 else 0


class QueryStep:
    """16 queries of the halo, in two halves of 8.

    plane, row: members on the axes of planes and rows; the second half is the next row. The last
    step may reach beyond the map.
    """

    def __init__(self, columns: Columns, plane: Any | None, row: Any | None) -> None:
        self.columns, self.warp = columns, columns.warp
        self.plane, self.row = plane, row
        s, warp = self.warp.s, self.warp
        # For each half, and for the lane's single query: the number of its row's first token.
        self.line = [s.let("line", self._line(half)) for half in range(2)]
        self.single = self.line[0]
        if row is not None:
            self.single = s.let("single_line", self._line((warp.lane >> 3) & 1))

    def _line(self, half: Any) -> Any:
        members = [] if self.plane is None else [self.plane]
        if self.row is not None:
            members.append(tirx.min(self.row + half, self.warp.axes[-2].length - 1))
        return self.warp.row_start(members)

    def own(self, tensor: Tensor, half: int) -> Any:
        """Return the element at which the lane's own query of a half begins in a tensor."""
        token = self.line[half] + self.columns.own[self.columns.of(half)]
        return token * tensor.stride + tensor.first

    def pair(self, tensor: Tensor, half: int, e: int) -> Any:
        """Return the element at which query `e` of the lane's pair of a half begins."""
        token = self.line[half] + self.columns.pair[self.columns.of(half)][e]
        return token * tensor.stride + tensor.first

    def scalar(self, name: str) -> Any:
        """Return the element of a tensor without channels for the lane's single query."""
        token = self.single + self.columns.single
        return self.warp.s.let(name, self.warp.scalar(name, token))

    def spread(self, number: Any) -> Any:
        """Return the numbers of the lane's four queries, [half, e], from the lanes that hold them.

        number: the lane's element from `scalar`.
        """
        s, warp = self.warp.s, self.warp
        numbers = s.registers("of_queries", 4)
        for half in range(2):
            for e in range(2):
                lane = 2 * warp.column + (HALF * half + e)
                s.store(numbers, 2 * half + e, call("float32", "natc_shuffle_float", number, lane))
        return numbers

    def mask(self, half: int, key_half: int) -> Any:
        """Return the mask of a packed pair of weights: ones if the query attends to the key."""
        warp, of = self.warp, self.columns.of
        mask = self.columns.masks[of(half)][of(key_half)]
        if self.row is None:
            return mask
        rows: TileWindow = warp.queries[key_half][-2]
        attends = is_below(self.row + half - rows.first, rows.count)
        return tirx.Select(attends, mask, tirx.const(0, "uint32"))

    def attends_to(self, half: int, e: int, queries: list[TileWindow]) -> Expr:
        """Return whether query `e` of the pair is in `queries`: for the last one or two axes."""
        member = self.columns.first + (HALF * self.columns.of(half) + e) + 2 * self.warp.column
        attends = queries[-1].has(member)
        if self.row is not None:
            attends = tirx.And(attends, queries[-2].has(self.row + half))
        return attends

    def biases(self) -> Any:
        """Return the step's biases to the base of two: [half of keys - half of queries + 1, e]."""
        warp = self.warp
        s, spec = warp.s, warp.spec
        values = s.registers("bias", 6)
        start: Any = warp.head
        if self.plane is not None:
            taps = spec.kernel_size[0]
            start = start * (2 * taps - 1) + (warp.axes[0].start - self.plane + (taps - 1))
        for apart in range(3):
            row, columns = start, self.columns.bias[apart if self.row is None else 0]
            if self.row is not None:
                taps = spec.kernel_size[-2]
                ahead = warp.axes[-2].start - self.row + (apart - 1 + taps - 1)
                row = start * (2 * taps - 1) + within(ahead, 2 * taps - 2)
            row = s.let("bias_row", row * (2 * spec.kernel_size[-1] - 1))
            for e in range(2):
                s.store(values, 2 * apart + e, rpb_at(warp.p["rpb"], row + columns[e]))
        return values
