"""Sums the gradients of a tile's queries, and adds its share to gradients of keys and values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.products import At, weighted_sum
from natc.compiler.cpu_tiles.sweep.query_tiles import COLUMN_OF, ROW_OF, Tiles
from natc.compiler.cpu_tiles.sweep.unit import least
from natc.compiler.cpu_tiles.vectors import broadcast, multiply_add


def of_queries(tiles: Tiles) -> None:
    """Compute the gradients of all queries of the rows at hand."""
    s, form = tiles.unit.s, tiles.unit.form
    together = form.sum_queries
    count = tirx.truncdiv(tiles.end - tiles.first + (together - 1), together)
    with s.loop("row", tiles.rows[1] - tiles.rows[0] + 1) as lower, s.loop("group", count) as n:
        first = s.let("first", tiles.first + n * together)
        columns = [s.let("column", least(first + q, tiles.end - 1)) for q in range(together)]
        starts = [s.let("start", tiles.key_column(column)) for column in columns]
        # The window of the next query begins 0 or 1 columns later: code for every combination.
        for steps in itertools.product((0, 1), repeat=together - 1):
            shifts = [0, *itertools.accumulate(steps)]
            conditions = [start - starts[0] == by for start, by in zip(starts[1:], shifts[1:])]
            condition = conditions[0]
            for further in conditions[1:]:
                condition = tirx.And(condition, further)
            with s.when(condition):
                _d_queries(tiles, lower, columns, starts[0], shifts)


def _d_queries(
    tiles: Tiles, lower: Any, columns: list[Expr], start: Expr, shifts: list[int]
) -> None:
    """Compute the gradients of adjacent queries.

    start: the column at which the first window begins. shifts: columns from there to the beginning
    of each window.
    """
    unit, s, form = tiles.unit, tiles.unit.s, tiles.unit.form
    row = s.let("row", tiles.rows[0] + lower)
    first_key_row = s.let("first_key_row", tiles.starts[0] + lower * tiles.step)
    taps, places = [], []
    for column in columns:
        number = s.let("number", column - tiles.first)
        is_right = tirx.bitwise_and(number, 1)
        at = tiles.taps(1, tirx.truncdiv(number, 2), lower * 2 + is_right).offset
        # A pair's rows of taps begin with the left query's window. The right query's taps begin
        # as many numbers later as its window begins columns later.
        left_start = unit.first_column(column - is_right)
        taps.append(s.let("taps", at + unit.first_column(column) - left_start))
        places.append(unit.place("d_query", row, column))
    step = form.sum_vectors * form.lanes
    with s.loop("channel_block", form.channels // step) as block:
        channel = s.let("channel", block * step)

        def keys(tap_row: Any) -> At:
            plane = tirx.truncdiv(tap_row, form.rows)
            slot = unit.slot(plane, first_key_row + tirx.truncmod(tap_row, form.rows))
            offset = (slot * form.strip + start) * form.channels + channel
            return At(unit.scratch, s.let("keys", unit.at("keys", offset).offset))

        def weights_at(at: Expr) -> Callable[[Any], At]:
            return lambda tap_row: At(unit.scratch, at + tap_row * form.padded)

        def result(query: int, vector: int, value: Expr) -> None:
            unit.write(places[query], channel + vector * form.lanes, value)

        weighted_sum(
            s,
            [(shift, weights_at(at)) for shift, at in zip(shifts, taps)],
            keys,
            rows=form.planes * form.rows,
            taps=form.columns,
            result=result,
            vectors=form.sum_vectors,
            value_stride=form.channels,
            lanes=form.lanes,
        )


def into_open(tiles: Tiles, pair: Any) -> None:
    """Add a tile's share to the gradients of values and keys of a plane in the panels."""
    s, form = tiles.unit.s, tiles.unit.form
    columns = tiles.columns(pair)
    starts = [s.let("start", tiles.key_column(column)) for column in columns]
    # d_value sums probabilities times gradients of outputs; d_key sums gradients of logits times
    # queries.
    for which in range(2):
        vectors = [tiles.vectors(1 - which, pair, number, columns) for number in range(form.tile)]
        panel = s.let(
            "panel", tiles.unit.at("open", which * form.panel + starts[0] * form.channels).offset
        )
        for shift in (0, 1):
            with s.when(starts[1] - starts[0] == shift):
                _scatter(tiles, which, pair, vectors, panel, shift)


def _scatter(
    tiles: Tiles, which: int, pair: Any, vectors: list[At], panel: Expr, shift: int
) -> None:
    """Add weights times a tile's vectors to the gradients of all keys of a plane.

    shift: how many columns later the right queries' windows begin.
    """
    unit, s, form = tiles.unit, tiles.unit.s, tiles.unit.form
    count, lanes = form.scatter_vectors, form.lanes
    upper, lower = tiles.starts
    is_one_row = tiles.is_one_row
    end = s.let("end", upper + form.rows)
    # Rows of keys that only upper queries reach, that all reach, that only lower queries reach.
    parts: tuple[tuple[tuple[bool, bool], Expr, Expr], ...] = (
        ((True, False), upper, s.let("upper_end", tirx.Select(is_one_row, end, lower))),
        ((True, True), lower, s.let("both_end", tirx.Select(is_one_row, lower, end))),
        ((False, True), end, s.let("lower_end", tirx.Select(is_one_row, end, lower + form.rows))),
    )
    if form.tile_rows == 1:
        parts = (((True, False), upper, end),)
    plane_taps = tiles.window_plane * form.plane_taps
    taps = [
        s.let("taps", tiles.taps(which, pair, number).offset + plane_taps)
        for number in range(form.tile)
    ]
    with s.loop("channel_block", form.channels // (count * lanes)) as block:
        channel = s.let("channel", block * (count * lanes))
        held = [
            [s.let("held", unit.read(at, channel + v * lanes)) for v in range(count)]
            for at in vectors
        ]
        for used, begin, stop in parts:
            with s.loop("key_row", stop - begin) as number:
                row = s.let("row", begin + number)
                slot = unit.slot(tiles.window_plane, row)
                to = s.let("to", panel + slot * (form.strip * form.channels) + channel)
                weights = [
                    s.let("weights", at + (row - (upper, lower)[ROW_OF[q]]) * form.padded)
                    if used[ROW_OF[q]]
                    else None
                    for q, at in enumerate(taps)
                ]
                for tap in range(form.columns + shift):
                    place = At(unit.scratch, to + tap * form.channels)
                    sums = [s.let("sum", unit.read(place, v * lanes)) for v in range(count)]
                    for q, at in enumerate(weights):
                        own = tap - shift * COLUMN_OF[q]
                        if at is None or not 0 <= own < form.columns:
                            continue
                        weight = s.let("weight", broadcast(unit.scratch[at + tap], lanes))
                        sums = [
                            s.let("sum", multiply_add(weight, held[q][v], sums[v], lanes))
                            for v in range(count)
                        ]
                    for v in range(count):
                        unit.store(place, v * lanes, sums[v])
