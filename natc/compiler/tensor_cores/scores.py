"""Scores of a tile's queries and a part of its halo, and their masks and biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.tensor_cores.halo import Channels, Part, vectors
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.logits import logit_of
from natc.compiler.tensor_cores.place import Tensor, WarpTile
from natc.compiler.tensor_cores.statements import at, call
from natc.compiler.tensor_cores.tile import HALF, Tile

LOG2_E = 1 / math.log(2.0)


def each_part(
    place: WarpTile,
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


def load_channels(place: WarpTile, words: Any, first: int, tensor: Tensor, element: Any) -> None:
    """Load this lane's channels of a token, in the order in which products take them."""
    for start, size in vectors(tensor.dim):
        place.s.call(
            f"natc_load_{2 * size}",
            at(words, first + start // 8),
            tensor.address(element + (start + size * place.column)),
        )


def load_halves(place: WarpTile, name: str, tensor: Tensor) -> Any:
    """Return the channels of the lane's own sites: words [half, dim / 8], named so."""
    s, words = place.s, tensor.dim // 8
    loaded = s.registers(name, 2 * words, "uint32")
    for half in range(2):
        token = s.let(f"token_{half}", place.token(place.query_index[half]))
        load_channels(place, loaded, half * words, tensor, token * tensor.stride + tensor.first)
    return loaded


def load_queries(place: WarpTile, query: Tensor, *, shuffled: bool) -> Any:
    """Return the channels of both halves: words [dim / 8, half] of a lane.

    shuffled: whether shuffles keep them, where a loop takes them and there are registers enough.
    """
    s, words = place.s, query.dim // 8
    loaded = load_halves(place, "query_loaded", query)
    found = s.registers("query_words", 2 * words, "uint32")
    # A product takes four registers in a row, a load writes others. The compiler would copy them
    # before each product, were they not changed once by what it cannot know to be 0. In a loop it
    # may do that again in every step, and a shuffle, though of a lane's own, it does not.
    zero = s.let("zero", tirx.min(place.p["group"], 0).astype("uint32"))
    lane = 4 * place.row + place.column
    for half in range(2):
        for word in range(words):
            own = loaded[half * words + word]
            kept = call("uint32", "natc_shuffle_from", own, lane) if shuffled else own ^ zero
            s.store(found, 2 * word + half, kept)
    return found


def products(place: WarpTile, part: Part, queries: Any, key: Tensor) -> Any:
    """Return the scores of a part: [row, product of the row, 4] of a lane."""
    s, tile, words = place.s, place.tile, place.spec.head_dim // 8
    scores = s.registers("scores", tile.products * 4)
    with s.unrolled("i", tile.products * 4) as i:
        s.store(scores, i, tirx.const(0.0, "float32"))
    channels = Channels(part, key)
    with s.unrolled("k", tile.chunk_rows) as k, s.unrolled("u", tile.columns) as u:
        keys = s.registers("key_words", words, "uint32")
        channels.load(keys, k, u)
        add_product(place, at(scores, (k * tile.columns + u) * 4), queries, keys, words)
    return scores


def add_product(place: WarpTile, found: Any, queries: Any, tokens: Any, words: int) -> None:
    """Add to `found` the product of a tile's queries and 8 tokens, of which a lane has one.

    queries: as `load_queries` has them. words: of a token.
    """
    for step in range(0, words, 2):
        place.s.call(
            f"natc_mma_{SHORT[place.spec.dtype]}",
            found,
            *(queries[2 * step + i] for i in range(4)),
            *(tokens[step + w] for w in (0, 1)),
        )


def finish(
    place: WarpTile, part: Part, scores: Any, rpb: Any | None, scale: Any, *, exact: bool
) -> None:
    """Turn scores into logits to the base of two; -inf where a query does not attend to a key.

    exact: even where a score beside the window is not finite. Else that may be NaN, and so are
    the query's sums.
    """
    s, tile = place.s, place.tile
    # Of rows, the same keys are attended to: what is added to every logit of them says which.
    masks = _added_masks(place) if tile.has_rows and not exact else None
    bias = None if rpb is None else biases(place, part, rpb, masks)
    minus_infinity = tirx.const(-math.inf, "float32")
    for half in range(2):
        behind = None if masks is not None else _behind(place, half)
        with (
            s.unrolled("k", tile.chunk_rows) as k,
            s.unrolled("u", tile.columns) as u,
            s.unrolled("e", 2) as e,
        ):
            index = (k * tile.columns + u) * 4 + (2 * half + e)
            added = None
            if bias is not None:
                added = bias[bias_index(tile, half, k, u, e)]
            elif masks is not None:
                added = masks[2 * u + e]
            logit = logit_of(scores[index], scale, added)
            valid = tirx.const(True, "bool")
            if masks is None:
                valid = _attends(place, half, behind, u, e)
            if tile.has_rows and tile.is_whole:
                valid = tirx.And(valid, _at_edges(place, part, half, k))
            s.store(scores, index, tirx.Select(valid, logit, minus_infinity))
    if tile.has_rows:
        _mask_rows(place, part, scores)


def _behind(place: WarpTile, half: int) -> Any:
    """Return how far the lane's first key is behind the window of its query, on the last axis."""
    first = place.windows[half][-1].first
    return place.s.let("behind", place.axes[-1].first_key + 2 * place.column - first)


def _attends(place: WarpTile, half: int, behind: Any, u: Any, e: Any) -> Expr:
    """Return whether a half's query attends to one of the keys of a product, but for rows."""
    # One comparison, since negative numbers become large.
    key = (behind + (HALF * u + e)).astype("uint32")
    return key < place.windows[half][-1].count.astype("uint32")


def _added_masks(place: WarpTile) -> Any:
    """Return 0 for keys of a row that its queries attend to, and -inf for others: [product, 2]."""
    s, behind = place.s, _behind(place, 0)
    found = s.registers("masks", 2 * place.tile.columns)
    with s.unrolled("u", place.tile.columns) as u, s.unrolled("e", 2) as e:
        attends = _attends(place, 0, behind, u, e)
        zero, minus = (tirx.const(x, "float32") for x in (0.0, -math.inf))
        s.store(found, 2 * u + e, tirx.Select(attends, zero, minus))
    return found


def _at_edges(place: WarpTile, part: Part, half: int, k: Any) -> Expr:
    """Return whether the first or last row is attended to, where windows are not cut short.

    Both are needed where the second half's windows begin a row later, and only there.
    """
    last = place.tile.rows - 1
    if half == 0:
        return k != last
    later = place.windows[1][-2].first > part.first_row
    return tirx.And(tirx.Or(k != 0, tirx.Not(later)), tirx.Or(k != last, later))


def _mask_rows(place: WarpTile, part: Part, scores: Any) -> None:
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


def biases(place: WarpTile, part: Part, rpb: Any, masks: Any | None = None) -> Any:
    """Return the biases of a part, to the base of two: [row, product, 2] of a lane.

    masks: of each key of a row, what is added to them.
    """
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
                if masks is not None:
                    value = value + masks[2 * u + e]
                s.store(found, (j * tile.columns + u) * 2 + e, value)
        else:
            with s.unrolled("half", 2) as half:
                column = _within(offset - HALF * half, 2 * last)
                value = rpb_at(rpb, start * (2 * last + 1) + column)
                s.store(found, (half * tile.columns + u) * 2 + e, value)
    return found


def _bias_row(place: WarpTile, part: Part, j: Any) -> Any:
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
