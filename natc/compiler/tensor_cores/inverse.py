"""Tiles of keys: where a warp's keys are, and which queries attend to them.

A warp takes 16 keys where the forward takes 16 queries, in the same tile. Per axis, the queries
that attend to them are consecutive members of their group, and more of them at a border: so a warp
walks over this halo 16 queries at a time, in tiles like its own, as often as it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc import window
from natc.compiler.tensor_cores.kernel import RESIDENT, WARPS_0, WARPS_1
from natc.compiler.tensor_cores.place import Tensor, TileWindow, WarpTile
from natc.compiler.tensor_cores.scores import rpb_at
from natc.compiler.tensor_cores.statements import call
from natc.compiler.tensor_cores.tile import HALF
from natc.spec import KernelSpec


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Warps of a block side by side, which share queries through the cache; warps of a multiprocessor
    for whose registers there must be room.
    """
    found: dict[str, Sequence[int]] = {} if spec.rank == 1 else {WARPS_0: (4, 2, 1)}
    found[WARPS_1] = (4, 2, 8, 1) if spec.rank == 1 else (1, 2, 4)
    # The first is the most for which compilers need no memory for registers.
    small = max(spec.head_dim, spec.value_dim) <= 32
    first = (16 if spec.rank < 3 else 12) if small else 8
    return {**found, RESIDENT: (first, *(n for n in (8, 12, 16) if n != first))}


class Keys(WarpTile):
    """The tile of keys of a warp.

    query_index: of each half, the lane's key on each axis. queries: of each half and axis, the
    queries that attend to that key. halo: of each axis, those that attend to a key of the tile.
    """

    def attend(self) -> None:
        """Work out which queries attend to the tile's keys."""
        s = self.s
        self.lane = s.let("lane", 4 * self.row + self.column)
        self.halo: list[TileWindow] = []
        for number, axis in enumerate(self.axes):
            first = s.let(f"halo_{number}", self.queries_of(number, axis.start).first)
            last = tirx.min(axis.start + (self.tile.extents[number] - 1), axis.length - 1)
            found = self.queries_of(number, last)
            count = s.let(f"halo_count_{number}", found.first + found.count - first)
            self.halo.append(TileWindow(first, count))
        self.queries = self.halves(self.queries_of)

    def queries_of(self, number: int, index: Any) -> TileWindow:
        """Return the queries that attend to a key, by its number in its group, on an axis."""
        return self.on_axis(window.queries_of, number, index)

    @contextmanager
    def steps(self) -> Iterator[QueryStep]:
        """Do the block for each 16 queries of the halo; it may be done more than once."""
        s, halo = self.s, self.halo
        width = self.tile.extents[-1]

        def number(axis: int, extent: int) -> Any:
            return tirx.truncdiv(halo[axis].count + (extent - 1), extent)

        @contextmanager
        def planes() -> Iterator[Any | None]:
            if self.spec.rank < 3:
                yield None
                return
            with s.loop("plane", halo[0].count) as plane:
                yield s.let("plane_index", halo[0].first + plane)

        with planes() as plane, s.loop("across", number(-1, width)) as across:
            columns = Columns(self, s.let("first_column", halo[-1].first + width * across))
            if self.tile.has_rows:
                with s.loop("down", number(-2, 2)) as down:
                    yield QueryStep(columns, plane, s.let("first_row", halo[-2].first + 2 * down))
            else:
                yield QueryStep(columns, plane, None)


class Columns:
    """The last axis of a step: 8 queries, which both of its halves have, or 16.

    A lane has one of each half as products over channels take queries, number `row` of the lane;
    and as those over queries take them two, 2 * `column` and the next. Of numbers of queries it
    loads one, that of query `lane` modulo 16.
    """

    def __init__(self, place: Keys, first: Any) -> None:
        self.place, self.first = place, first
        s, axis, self.parts = place.s, place.axes[-1], 1 if place.tile.has_rows else 2

        def position(name: str, member: Any) -> Any:
            # Beyond the group nothing is attended to, and what is read must be there.
            return s.let(name, axis.position(tirx.min(member, axis.length - 1)))

        first_of = [first + HALF * part for part in range(self.parts)]
        self.own = [position("own_position", f + place.row) for f in first_of]
        self.pair = [
            [position("pair_position", f + 2 * place.column + e) for e in range(2)]
            for f in first_of
        ]
        in_part = place.lane & (HALF * self.parts - 1)
        self.single = position("single_position", first + in_part)
        # From the first query that attends to the lane's key to the first of its pair.
        self.behind = [
            s.let("behind", first + 2 * place.column - place.queries[half][-1].first)
            for half in range(self.parts)
        ]
        self.masks = [
            [s.let("mask", self._mask(half, key_half)) for key_half in range(self.parts)]
            for half in range(self.parts)
        ]
        self.bias: list[list[Any]] = []
        if "rpb" in place.p:
            most = 2 * place.spec.kernel_size[-1] - 2
            ahead = place.axes[-1].start + place.row - first - 2 * place.column + most // 2
            apart = (0,) if place.tile.has_rows else (-1, 0, 1)
            self.bias = [
                [s.let("bias_column", _within(ahead + HALF * n - e, most)) for e in range(2)]
                for n in apart
            ]

    def _mask(self, half: int, key_half: int) -> Any:
        count = self.place.queries[key_half][-1].count
        found: Any = tirx.const(0, "uint32")
        for e, bits in enumerate((0xFFFF, 0xFFFF0000)):
            attends = _below(self.behind[key_half] + (HALF * half + e), count)
            found |= tirx.Select(attends, tirx.const(bits, "uint32"), tirx.const(0, "uint32"))
        return found

    def of(self, half: int) -> int:
        """Return the number of the part that a half of 8 queries, or of 8 keys, has."""
        return half if self.parts > 1 else 0


class QueryStep:
    """16 queries in two halves of 8; members of rows and planes that tiles may reach beyond."""

    def __init__(self, columns: Columns, plane: Any | None, row: Any | None) -> None:
        self.columns, self.place = columns, columns.place
        self.plane, self.row = plane, row
        s, place = self.place.s, self.place
        # Of each half, and of the lane's single query, the token before its row's first.
        self.line = [s.let("line", self._line(half)) for half in range(2)]
        self.single = self.line[0]
        if row is not None:
            self.single = s.let("single_line", self._line((place.lane >> 3) & 1))

    def _line(self, half: Any) -> Any:
        place = self.place
        members = [] if self.plane is None else [self.plane]
        if self.row is not None:
            members.append(tirx.min(self.row + half, place.axes[-2].length - 1))
        found: Any = place.batch
        for axis, member in zip(place.axes, members):
            found = found * axis.size + axis.position(member)
        return found * place.axes[-1].size

    def own(self, tensor: Tensor, half: int) -> Any:
        """Return the element of the first channel of the lane's query of a half."""
        token = self.line[half] + self.columns.own[self.columns.of(half)]
        return token * tensor.stride + tensor.first

    def pair(self, tensor: Tensor, half: int, e: int) -> Any:
        """Return the element of the first channel of a query of the lane's pair of a half."""
        token = self.line[half] + self.columns.pair[self.columns.of(half)][e]
        return token * tensor.stride + tensor.first

    def number(self, name: str) -> Any:
        """Return what a tensor without channels holds for the lane's single query."""
        token = self.single + self.columns.single
        return self.place.s.let(name, self.place.number(name, token))

    def spread(self, number: Any) -> Any:
        """Return the numbers of the lane's pairs of queries, of which each lane has one."""
        s, place = self.place.s, self.place
        found = s.registers("of_queries", 4)
        for half in range(2):
            for e in range(2):
                lane = 2 * place.column + (HALF * half + e)
                s.store(found, 2 * half + e, call("float32", "natc_shuffle_float", number, lane))
        return found

    def mask(self, half: int, key_half: int) -> Any:
        """Return the bits of a word, two weights of the lane's pair, that are of pairs."""
        place, of = self.place, self.columns.of
        found = self.columns.masks[of(half)][of(key_half)]
        if self.row is None:
            return found
        rows: TileWindow = place.queries[key_half][-2]
        attends = _below(self.row + half - rows.first, rows.count)
        return tirx.Select(attends, found, tirx.const(0, "uint32"))

    def attends_to(self, half: int, e: int, queries: list[TileWindow]) -> Expr:
        """Return whether a query of the pair is one of those that attend to some key."""
        member = self.columns.first + (HALF * self.columns.of(half) + e) + 2 * self.place.column
        found = queries[-1].has(member)
        if self.row is not None:
            found = tirx.And(found, queries[-2].has(self.row + half))
        return found

    def biases(self) -> Any:
        """Return the biases, to the base of two: [half of keys - half of queries + 1, e]."""
        place = self.place
        s, spec = place.s, place.spec
        found = s.registers("bias", 6)
        start: Any = place.head
        if self.plane is not None:
            taps = spec.kernel_size[0]
            start = start * (2 * taps - 1) + (place.axes[0].start - self.plane + (taps - 1))
        for apart in range(3):
            row, columns = start, self.columns.bias[apart if self.row is None else 0]
            if self.row is not None:
                taps = spec.kernel_size[-2]
                ahead = place.axes[-2].start - self.row + (apart - 1 + taps - 1)
                row = start * (2 * taps - 1) + _within(ahead, 2 * taps - 2)
            row = s.let("bias_row", row * (2 * spec.kernel_size[-1] - 1))
            for e in range(2):
                s.store(found, 2 * apart + e, rpb_at(place.p["rpb"], row + columns[e]))
        return found


def _below(number: Any, count: Any) -> Expr:
    """Return whether 0 <= number < count: one comparison, since negative numbers become large."""
    return number.astype("uint32") < count.astype("uint32")


def _within(offset: Any, most: int) -> Any:
    return tirx.max(tirx.min(offset, most), 0)
