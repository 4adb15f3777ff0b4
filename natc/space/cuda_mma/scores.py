"""Scores of a tile's queries and a part of its halo, and their masks and biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.space.cuda_mma.place import Place, Tensor, Window
from natc.space.cuda_mma.statements import at
from natc.space.cuda_mma.tile import HALF, Tile

LOG2_E = 1 / math.log(2.0)


class Part:
    """Rows of a halo that are computed at once.

    plane: the first index of the rows, where there are three axes. row: index of the first row, or
    None where there is one axis.
    """

    def __init__(self, place: Place, plane: Any, row: Any) -> None:
        self.place, self.tile = place, place.tile
        self.plane, self.first_row = plane, row

    def offset(self, tensor: Tensor, row: Any) -> Any:
        """Return the element of a row's first token and this head's first channel, clamped."""
        place = self.place
        index = [] if self.plane is None else [self.plane]
        found: Any = place.batch
        if self.first_row is not None:
            index.append(tirx.min(self.first_row + row, place.axes[-2].length - 1))
        for axis, member in zip(place.axes, index):
            found = found * axis.size + axis.position(member)
        return found * place.axes[-1].size * tensor.stride + tensor.first

    def has_row(self, row: Any, half: int) -> Expr:
        """Return whether the queries of a half attend to a row."""
        window: Window = self.place.windows[half][-2]
        return window.has(self.first_row + row)


def each_part(
    place: Place,
    run: Callable[[Part], None],
    begin: Callable[[], None] = lambda: None,
    end: Callable[[Any], None] = lambda plane: None,
) -> None:
    """Run what is to be done for each part of the halo; begin and end: for each plane of it."""
    s, tile = place.s, place.tile

    def plane(index: Any | None) -> None:
        begin()
        parts(index)
        end(index)

    def parts(index: Any | None) -> None:
        if not tile.has_rows:
            run(Part(place, None, None))
        elif tile.is_whole:
            run(Part(place, index, place.axes[-2].first_key))
        else:
            # Only as far as the windows of the lower half reach.
            last = place.windows[1][-2]
            needed = last.first + last.count - place.axes[-2].first_key
            chunks = tirx.truncdiv(needed + (tile.chunk_rows - 1), tile.chunk_rows)
            with s.loop("chunk", chunks) as chunk:
                row = s.let("chunk_row", place.axes[-2].first_key + chunk * tile.chunk_rows)
                run(Part(place, index, row))

    if place.spec.rank == 3:
        with s.loop("plane", place.windows[0][0].count) as number:
            plane(s.let("plane_index", place.axes[0].first_key + number))
    else:
        plane(None)


def column_offset(place: Place, tensor: Tensor, key: Any) -> Any:
    """Return how far behind its row's first a key's token is; keys beyond the map are the last."""
    axis = place.axes[-1]
    return axis.position(tirx.min(axis.first_key + key, axis.length - 1)) * tensor.stride


def load_channels(place: Place, words: Any, first: int, tensor: Tensor, element: Any) -> None:
    """Load this lane's channels of a token, in the order in which products take them.

    Lane t of those that share a token has every t-th vector of 8 channels, or of 4 where 16 are
    left over: both sides of a product have their channels in the same order, whichever it is.
    """
    for start in range(0, tensor.dim, 32):
        size = min(tensor.dim - start, 32) // 4
        place.s.call(
            f"natc_load_{2 * size}",
            at(words, first + start // 8),
            tensor.address(element + (start + size * place.column)),
        )


def load_halves(place: Place, name: str, tensor: Tensor) -> Any:
    """Return the channels of the lane's own sites: words [half, dim / 8], named so."""
    s, words = place.s, tensor.dim // 8
    loaded = s.registers(name, 2 * words, "uint32")
    for half in range(2):
        token = s.let(f"token_{half}", place.token(place.query_index[half]))
        load_channels(place, loaded, half * words, tensor, token * tensor.stride + tensor.first)
    return loaded


def load_queries(place: Place, query: Tensor) -> Any:
    """Return the channels of both halves: words [dim / 8, half] of a lane."""
    s, words = place.s, query.dim // 8
    loaded = load_halves(place, "query_loaded", query)
    found = s.registers("query_words", 2 * words, "uint32")
    # A product takes four registers in a row, a load writes others. The compiler would copy them
    # before each product, were they not changed once by what it cannot know to be 0.
    zero = s.let("zero", tirx.min(place.p["group"], 0).astype("uint32"))
    for half in range(2):
        for word in range(words):
            s.store(found, 2 * word + half, loaded[half * words + word] ^ zero)
    return found


def products(place: Place, part: Part, queries: Any, key: Tensor, mma: str) -> Any:
    """Return the scores of a part: [row, product of the row, 4] of a lane."""
    s, tile, words = place.s, place.tile, place.spec.head_dim // 8
    scores = s.registers("scores", tile.products * 4)
    with s.unrolled("i", tile.products * 4) as i:
        s.store(scores, i, tirx.const(0.0, "float32"))
    columns = s.registers("key_columns", tile.columns, "int32")
    with s.unrolled("u", tile.columns) as u:
        s.store(columns, u, column_offset(place, key, HALF * u + place.row))
    with s.unrolled("k", tile.chunk_rows) as k:
        row = s.let("key_row", part.offset(key, k))
        with s.unrolled("u", tile.columns) as u:
            keys = s.registers("key_words", words, "uint32")
            load_channels(place, keys, 0, key, row + columns[u])
            for step in range(0, words, 2):
                s.call(
                    mma,
                    at(scores, (k * tile.columns + u) * 4),
                    *(queries[2 * step + i] for i in range(4)),
                    *(keys[step + w] for w in (0, 1)),
                )
    return scores


def finish(place: Place, part: Part, scores: Any, rpb: Any | None, scale: Any) -> None:
    """Turn scores into logits to the base of two; -inf where a query does not attend to a key."""
    s, tile = place.s, place.tile
    bias = None if rpb is None else biases(place, part, rpb)
    minus_infinity = tirx.const(-math.inf, "float32")
    behind: Any = None
    for half in range(2):
        window = place.windows[half][-1]
        # From the first key of the window to the lane's first; the halves of rows share a window.
        behind = (
            behind
            if half and tile.has_rows
            else s.let(
                f"behind_{half}", place.axes[-1].first_key + 2 * place.column - window.first
            )
        )
        with (
            s.unrolled("k", tile.chunk_rows) as k,
            s.unrolled("u", tile.columns) as u,
            s.unrolled("e", 2) as e,
        ):
            index = (k * tile.columns + u) * 4 + (2 * half + e)
            logit = scores[index] * scale
            if bias is not None:
                logit = logit + bias[bias_index(tile, half, k, u, e)]
            # One comparison, since negative numbers become large.
            key = (behind + (HALF * u + e)).astype("uint32")
            valid = key < window.count.astype("uint32")
            if tile.has_rows and tile.is_whole:
                valid = tirx.And(valid, _at_edges(place, part, half, k))
            s.store(scores, index, tirx.Select(valid, logit, minus_infinity))
    if tile.has_rows:
        _mask_rows(place, part, scores)


def _at_edges(place: Place, part: Part, half: int, k: Any) -> Expr:
    """Return whether the first or last row is attended to, where windows are not cut short.

    Both are needed where the second half's windows begin a row later, and only there.
    """
    last = place.tile.rows - 1
    if half == 0:
        return k != last
    later = place.windows[1][-2].first > part.first_row
    return tirx.And(tirx.Or(k != 0, tirx.Not(later)), tirx.Or(k != last, later))


def _mask_rows(place: Place, part: Part, scores: Any) -> None:
    """Mask the rows that a half does not attend to, where there may be some."""
    s, tile = place.s, place.tile
    first, second = (place.windows[half][-2] for half in range(2))
    if tile.is_whole:
        taps = place.spec.kernel_size[-2]
        needed = tirx.Or(first.count < taps, second.count < taps)
    else:
        end = part.first_row + tile.chunk_rows
        needed = tirx.Or(part.first_row < second.first, first.first + first.count < end)
    with s.when(needed):
        for half in range(2):
            with s.unrolled("k", tile.chunk_rows) as k:
                present = part.has_row(k, half)
                with s.unrolled("u", tile.columns) as u, s.unrolled("e", 2) as e:
                    index = (k * tile.columns + u) * 4 + (2 * half + e)
                    masked = tirx.Select(present, scores[index], tirx.const(-math.inf, "float32"))
                    s.store(scores, index, masked)


def bias_index(tile: Tile, half: int, k: Any, u: Any, e: Any) -> Any:
    """Return which of the biases of a part one of a half's queries has."""
    # With rows, the second half's queries are a row below the first's: biases are a row above.
    row = k + (1 - half) if tile.has_rows else half
    if tile.is_whole and tile.has_rows and not half:
        row = tirx.min(row, tile.rows - 1)  # the last row of keys is not the first half's
    return (row * tile.columns + u) * 2 + e


def biases(place: Place, part: Part, rpb: Any) -> Any:
    """Return the biases of a part, to the base of two: [row, product, 2] of a lane."""
    s, tile, spec = place.s, place.tile, place.spec
    rows = tile.chunk_rows + (not tile.is_whole) if tile.has_rows else 2
    found = s.registers("bias", rows * tile.columns * 2)
    last = spec.kernel_size[-1] - 1
    start: Any = place.head
    if part.plane is not None:
        taps = spec.kernel_size[0]
        start = start * (2 * taps - 1) + (part.plane - place.axes[0].start + (taps - 1))
    low = s.let("low", place.axes[-1].first_key - place.axes[-1].start - place.row + last)
    with s.unrolled("u", tile.columns) as u, s.unrolled("e", 2) as e:
        offset = s.let("bias_column", low + (2 * place.column + (HALF * u + e)))
        if tile.has_rows:
            column = s.let("bias_at", _within(offset, 2 * last))
            with s.unrolled("j", rows) as j:
                row = start * (2 * spec.kernel_size[-2] - 1) + _bias_row(place, part, j)
                value = rpb_at(rpb, row * (2 * last + 1) + column)
                s.store(found, (j * tile.columns + u) * 2 + e, value)
        else:
            with s.unrolled("half", 2) as half:
                column = _within(offset - HALF * half, 2 * last)
                value = rpb_at(rpb, start * (2 * last + 1) + column)
                s.store(found, (half * tile.columns + u) * 2 + e, value)
    return found


def _bias_row(place: Place, part: Part, j: Any) -> Any:
    """Return the row of biases for row j - 1 of a part and the first half; what is none is one."""
    last = place.spec.kernel_size[-2] - 1
    first = part.first_row - place.axes[-2].start + (last - 1)
    if place.tile.is_whole:
        # Every other row is one: a window holds its query.
        return tirx.Select(j == 0, tirx.max(first, 0), first + j)
    return _within(first + j, 2 * last)


def _within(offset: Any, most: int) -> Any:
    return tirx.max(tirx.min(offset, most), 0)


def rpb_at(rpb: Any, element: Any) -> Expr:
    """Return an element of the bias, counted from its first, to the base of two."""
    zeros = [0] * (len(rpb.ty.shape) - 1)
    index = (*zeros, element)
    return rpb[index] * tirx.const(LOG2_E, "float32")
