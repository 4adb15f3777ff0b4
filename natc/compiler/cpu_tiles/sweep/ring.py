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

    A column that the next strip reaches, too, is kept in the scratch memory until then. A row that
    the queries of a neighboring band reach, too, goes to `shared`, and both parts are added when
    all bands are done. Each number of a result is written once.
    """

    def __init__(self, unit: Unit, shared: tirx.Buffer, side: Callable[[int, Any, Any], Expr]):
        """side(which, row, column): where a token's gradient is in `shared`."""
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

        A sum begins with the value that the previous strip kept, or with 0.
        """
        unit, s, form = self.unit, self.unit.s, self.unit.form
        slot = s.let("slot", unit.slot(row))
        for which, name in enumerate(("key", "value")):
            pack_channels(
                s,
                self._tokens(name, row),
                unit.at("channels", which * form.panel + slot * (form.channels * form.strip)),
                tokens=self.count,
                channels=form.channels,
                width=form.strip,
                lanes=form.lanes,
            )
        pack_tokens(
            s,
            self._tokens("key", row),
            unit.at("keys", slot * (form.strip * form.channels)),
            tokens=self.count,
            channels=form.channels,
            lanes=form.lanes,
        )
        for which in range(len(GRADIENTS)):
            place = self._open(which, slot)
            with s.loop("column", self._before) as x:
                kept = s.let("kept", self._kept(which, row, x).offset)
                at = s.let("at", place.offset + x * form.channels)
                for channel in range(0, form.channels, form.lanes):
                    value = unit.read(At(unit.scratch, kept), channel)
                    unit.store(At(place.buffer, at), channel, value)
            with s.loop("column", self.count - self._before) as number:
                at = s.let("at", place.offset + (self._before + number) * form.channels)
                for channel in range(0, form.channels, form.lanes):
                    unit.store(At(place.buffer, at), channel, broadcast(0.0, form.lanes))

    def leave(self, row: Any) -> None:
        """Write the gradients of a row that no further query of the strip reaches."""
        unit, s, form = self.unit, self.unit.s, self.unit.form
        slot = s.let("slot", unit.slot(row))
        own, own_end = self._own
        alone = s.let("alone", tirx.And(row >= own, row < own_end))
        for which, name in enumerate(GRADIENTS):
            source = self._open(which, slot)
            with s.when(alone):
                self._leave_to(source, unit.places(name, row))
            with s.when(tirx.Not(alone)):
                begin = s.let("begin", self._side(which, row, zero()))
                self._leave_to(source, lambda x, b=begin: At(self.shared, b + x * form.channels))
            with s.loop("column", self.count - self._after) as number:
                kept = s.let("kept", self._kept(which, row, number).offset)
                at = source.offset + (self._after + number) * form.channels
                at = At(source.buffer, s.let("at", at))
                for channel in range(0, form.channels, form.lanes):
                    save(s, unit.scratch, kept + channel, unit.read(at, channel), form.lanes)

    def _leave_to(self, source: At, places: Callable[..., At]) -> None:
        """Write the columns of a row that the next strip lacks; places: column -> destination."""
        unit, s, form = self.unit, self.unit.s, self.unit.form
        with s.loop("column", self._after) as x:
            at = At(source.buffer, s.let("at", source.offset + x * form.channels))
            to = places(self.first_column + x)
            to = At(to.buffer, s.let("to", to.offset))
            for channel in range(0, form.channels, form.lanes):
                unit.write(to, channel, unit.read(at, channel))

    def add_shared(self, which: int, row: Any, upper: Any, lower: Any) -> None:
        """Write the gradients of a row that two bands reach.

        upper, lower: where its two parts are in `shared`.
        """
        unit, s, form = self.unit, self.unit.s, self.unit.form
        places = unit.places(GRADIENTS[which], row)
        with s.loop("column", unit.columns) as x:
            at = At(places(x).buffer, s.let("place", places(x).offset))
            parts = [s.let("part", part + x * form.channels) for part in (upper, lower)]
            for channel in range(0, form.channels, form.lanes):
                first, second = (load(self.shared, part + channel, form.lanes) for part in parts)
                unit.write(at, channel, first + second)

    def _tokens(self, name: str, row: Any) -> Callable[[Any, Any], Expr]:
        places = self.unit.places(name, row)
        return lambda x, channel: self.unit.floats(places(self.first_column + x), channel)

    def _open(self, which: int, slot: Any) -> At:
        form = self.unit.form
        at = self.unit.at("open", which * form.panel + slot * (form.strip * form.channels))
        return At(at.buffer, self.unit.s.let("open", at.offset))

    def _kept(self, which: int, row: Any, column: Any) -> At:
        """Return where a column's sums are kept between strips; column: its number in the next."""
        form = self.unit.form
        number = (which * self._kept_rows + (row - self.first)) * form.strip + column
        return At(self.unit.scratch, self.unit.parts["end"] + number * form.channels)


def kept_numbers(unit: Unit, rows: Any) -> Expr:
    """Return how many numbers of scratch memory `rows` rows take between two strips."""
    form = unit.form
    return len(GRADIENTS) * most(rows, 1) * (form.strip * form.channels)
