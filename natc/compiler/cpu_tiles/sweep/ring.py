"""Rows of keys that enter the panels, and rows of gradients that leave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.panels import pack_channels, pack_tokens
from natc.compiler.cpu_tiles.products import At
from natc.compiler.cpu_tiles.sweep.unit import Unit, most, zero
from natc.compiler.cpu_tiles.vectors import broadcast, load, save

# The gradients in the part `open` of the scratch memory, in their order there.
GRADIENTS = ("d_value", "d_key")


class Ring:
    """The panels of a strip, which hold the rows that the tiles at hand reach.

    In the panels, a row is the rows of that number in all planes of the windows at hand. A column
    that the next strip reaches, too, is kept in the scratch memory until then. So is a whole plane
    that the next plane of queries reaches, too. A row that the queries of a neighboring band
    reach, too, goes to `shared`, and both parts are added when all bands are done. Each number of
    a result is written once.
    """

    def __init__(
        self, unit: Unit, shared: tirx.Buffer, side: Callable[[int, Any, Any, Any], Expr]
    ):
        """side(which, plane, row, column): where a token's gradient is in `shared`."""
        self.unit, self.shared, self._side = unit, shared, side

    def set_band(self, first: Any, kept_rows: Any, own: tuple[Any, Any]) -> None:
        """Set a band's first row of keys and the most rows that it may have.

        own: (begin, end) of the rows that no other band reaches.
        """
        self.first, self._kept_rows, self._own = first, kept_rows, own

    def set_strip(self, first: Any, count: Any, before: Any, after: Any) -> None:
        """Set a strip's first column of keys and their number.

        before: how many of them the previous strip has, too. after: the number of the first column
        that the next strip has, too.
        """
        self.first_column, self.count, self._before, self._after = first, count, before, after

    def enter(self, row: Any) -> None:
        """Copy a row of keys and values into the panels, and begin the sums of its gradients.

        A sum begins with the value that the previous strip or plane of queries kept, or with 0.
        """
        unit, s = self.unit, self.unit.s
        with s.loop("window_plane", unit.form.planes) as number:
            plane, before = s.let("plane", unit.first_plane + number), self._before
            if unit.form.planes > 1:
                has_sums = tirx.And(unit.plane > 0, number < self._seen_planes())
                before = s.let("before", tirx.Select(has_sums, self.count, before))
            self._enter(plane, row, s.let("slot", unit.slot(number, row)), before)

    def _enter(self, plane: Any, row: Any, slot: Any, before: Any) -> None:
        """Copy a row of a plane; before: how many of its first columns have sums already."""
        unit, s, form = self.unit, self.unit.s, self.unit.form
        for which, name in enumerate(("key", "value")):
            pack_channels(
                s,
                self._tokens(name, plane, row),
                unit.at("channels", which * form.panel + slot * (form.channels * form.strip)),
                tokens=self.count,
                channels=form.channels,
                width=form.strip,
                lanes=form.lanes,
            )
        pack_tokens(
            s,
            self._tokens("key", plane, row),
            unit.at("keys", slot * (form.strip * form.channels)),
            tokens=self.count,
            channels=form.channels,
            lanes=form.lanes,
        )
        for which in range(len(GRADIENTS)):
            place = self._open(which, slot)
            with s.loop("column", before) as x:
                kept = s.let("kept", self._kept(which, (plane, row), x, zero()).offset)
                at = s.let("at", place.offset + x * form.channels)
                for channel in range(0, form.channels, form.lanes):
                    value = unit.read(At(unit.scratch, kept), channel)
                    unit.store(At(place.buffer, at), channel, value)
            with s.loop("column", self.count - before) as number:
                at = s.let("at", place.offset + (before + number) * form.channels)
                for channel in range(0, form.channels, form.lanes):
                    unit.store(At(place.buffer, at), channel, broadcast(0.0, form.lanes))

    def leave(self, row: Any) -> None:
        """Write the gradients of a row that no further query of the strip reaches.

        Sums to which other strips or planes of queries add are kept.
        """
        unit, s = self.unit, self.unit.s
        with s.loop("window_plane", unit.form.planes) as number:
            plane, after = s.let("plane", unit.first_plane + number), self._after
            if unit.form.planes > 1:
                is_last = unit.plane == unit.planes - 1
                done = tirx.Or(is_last, plane < unit.first_plane_of(unit.plane + 1))
                after = s.let("after", tirx.Select(done, after, zero()))
            self._leave(plane, row, s.let("slot", unit.slot(number, row)), after)

    def _leave(self, plane: Any, row: Any, slot: Any, after: Any) -> None:
        """Write the first columns of a row of a plane and keep the others, from `after` on."""
        unit, s, form = self.unit, self.unit.s, self.unit.form
        own, own_end = self._own
        alone = s.let("alone", tirx.And(row >= own, row < own_end))
        for which, name in enumerate(GRADIENTS):
            source = self._open(which, slot)
            with s.when(alone):
                self._leave_to(source, after, unit.places(name, plane, row))
            with s.when(tirx.Not(alone)):
                begin = s.let("begin", self._side(which, plane, row, zero()))
                self._leave_to(
                    source, after, lambda x, b=begin: At(self.shared, b + x * form.channels)
                )
            with s.loop("column", self.count - after) as number:
                kept = s.let("kept", self._kept(which, (plane, row), number, after).offset)
                at = source.offset + (after + number) * form.channels
                at = At(source.buffer, s.let("at", at))
                for channel in range(0, form.channels, form.lanes):
                    save(s, unit.scratch, kept + channel, unit.read(at, channel), form.lanes)

    def _leave_to(self, source: At, after: Any, places: Callable[..., At]) -> None:
        """Write the columns before `after` of a row; places: column -> destination."""
        unit, s, form = self.unit, self.unit.s, self.unit.form
        with s.loop("column", after) as x:
            at = At(source.buffer, s.let("at", source.offset + x * form.channels))
            to = places(self.first_column + x)
            to = At(to.buffer, s.let("to", to.offset))
            for channel in range(0, form.channels, form.lanes):
                unit.write(to, channel, unit.read(at, channel))

    def add_shared(self, which: int, plane: Any, row: Any, upper: Any, lower: Any) -> None:
        """Write the gradients of a row that two bands reach.

        upper, lower: where its two parts are in `shared`.
        """
        unit, s, form = self.unit, self.unit.s, self.unit.form
        places = unit.places(GRADIENTS[which], plane, row)
        with s.loop("column", unit.columns) as x:
            at = At(places(x).buffer, s.let("place", places(x).offset))
            parts = [s.let("part", part + x * form.channels) for part in (upper, lower)]
            for channel in range(0, form.channels, form.lanes):
                first, second = (load(self.shared, part + channel, form.lanes) for part in parts)
                unit.write(at, channel, first + second)

    def _seen_planes(self) -> Expr:
        """Return how many of the windows' planes the previous plane of queries reached."""
        unit = self.unit
        return unit.first_plane_of(unit.plane - 1) + unit.form.planes - unit.first_plane

    def _tokens(self, name: str, plane: Any, row: Any) -> Callable[[Any, Any], Expr]:
        places = self.unit.places(name, plane, row)
        return lambda x, channel: self.unit.floats(places(self.first_column + x), channel)

    def _open(self, which: int, slot: Any) -> At:
        form = self.unit.form
        at = self.unit.at("open", which * form.panel + slot * (form.strip * form.channels))
        return At(at.buffer, self.unit.s.let("open", at.offset))

    def _kept(self, which: int, row: tuple[Any, Any], column: Any, after: Any) -> At:
        """Return where a column's sums are kept until the next strip or plane reaches it.

        row: its plane and number. column: its number in this strip, less `after`. If nothing is
        kept between planes, this is its number in the next strip, too.
        """
        unit, form = self.unit, self.unit.form
        place, number = which * self._kept_rows + (row[1] - self.first), column
        if form.planes > 1:
            place = place * form.planes + tirx.truncmod(row[0], form.planes)
            number = self.first_column + after + column
        number = place * _kept_columns(unit) + number
        return At(unit.scratch, unit.parts["end"] + number * form.channels)


def _kept_columns(unit: Unit) -> Any:
    """Return how many columns of a row are kept at most."""
    return unit.form.strip if unit.form.planes == 1 else unit.columns


def kept_numbers(unit: Unit, rows: Any) -> Expr:
    """Return how many numbers of scratch memory the kept sums of `rows` rows take."""
    form = unit.form
    tokens = most(rows, 1) * form.planes * _kept_columns(unit)
    return len(GRADIENTS) * tokens * form.channels
