"""Scores of a tile's queries with a part of its halo, and their masks and biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.statements import at, call
from natc.compiler.tensor_cores.halo import Channels, Part, vectors
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.logits import LOG2_E, exponent_of, logit_of
from natc.compiler.tensor_cores.tile import HALF, Tile
from natc.compiler.tensor_cores.warp_tile import Tensor, WarpTile, element_of, is_below


def each_part(
    warp: WarpTile,
    run: Callable[[Part], None],
    begin: Callable[[], None] = lambda: None,
    end: Callable[[Any], None] = lambda plane: None,
) -> None:
    """Call `run` for each part of the halo, and `begin` and `end` around the parts of a plane."""
    s, tile = warp.s, warp.tile

    def plane(index: Any | None) -> None:
        begin()
        parts(index)
        end(index)

    def parts(index: Any | None) -> None:
        if not tile.has_rows:
            run(Part(warp, None, None))
        elif tile.is_whole:
            run(Part(warp, index, warp.axes[-2].first_key))
        else:
            # The windows of the second half, which is the lower row, reach farthest.
            last = warp.windows[1][-2]
            needed = last.first + last.count - warp.axes[-2].first_key
            chunks = tirx.truncdiv(needed + (tile.chunk_rows - 1), tile.chunk_rows)
            with s.loop("chunk", chunks) as chunk:
                row = s.let("chunk_row", warp.axes[-2].first_key + chunk * tile.chunk_rows)
                run(Part(warp, index, row))

    if warp.spec.rank == 3:
        with s.loop("plane", warp.windows[0][0].count) as number:
            plane(s.let("plane_index", warp.axes[0].first_key + number))
    else:
        plane(None)


def load_channels(warp: WarpTile, words: Any, first: int, tensor: Tensor, element: Any) -> None:
    """Load the lane's channels of a token, in the order in which products take them.

    element: of the token's first channel. words: gets them, from index `first` on.
    """
    for start, size in vectors(tensor.dim):
        warp.s.call(
            f"natc_load_{2 * size}",
            at(words, first + start // 8),
            tensor.address(element + (start + size * warp.column)),
        )


def load_halves(warp: WarpTile, name: str, tensor: Tensor) -> Any:
    """Return a register array `name` with the channels of the lane's sites: [half, dim / 8]."""
    s, words = warp.s, tensor.dim // 8
    loaded = s.registers(name, 2 * words, "uint32")
    for half in range(2):
        token = s.let(f"token_{half}", warp.token(warp.query_index[half]))
        load_channels(warp, loaded, half * words, tensor, token * tensor.stride + tensor.first)
    return loaded


def load_queries(warp: WarpTile, query: Tensor, *, shuffled: bool) -> Any:
    """Return the lane's channels of the queries of both halves: words [dim / 8, half].

    shuffled: whether to keep them in registers by a shuffle. For products in a loop, if there are
    registers enough.
    """
    s, words = warp.s, query.dim // 8
    loaded = load_halves(warp, "query_loaded", query)
    kept_words = s.registers("query_words", 2 * words, "uint32")
    # A product needs four consecutive registers, and a load writes elsewhere: the compiler would
    # copy the words before each product. Xor with a number that it cannot know to be 0 makes it
    # copy them once. In a loop it may repeat even that in every step, to save registers; it never
    # repeats a shuffle, here of the lane with itself.
    zero = s.let("zero", tirx.min(warp.p["group"], 0).astype("uint32"))
    lane = 4 * warp.row + warp.column
    for half in range(2):
        for word in range(words):
            own = loaded[half * words + word]
            kept = call("uint32", "natc_shuffle_from", own, lane) if shuffled else own ^ zero
            s.store(kept_words, 2 * word + half, kept)
    return kept_words


def products(warp: WarpTile, part: Part, queries: Any, key: Tensor) -> Any:
    """Return the lane's scores of a part: [row, product of the row, 4]."""
    s, tile, words = warp.s, warp.tile, warp.spec.head_dim // 8
    scores = s.zeros("scores", tile.products * 4)
    channels = Channels(part, key)
    with s.unrolled("k", tile.chunk_rows) as k, s.unrolled("u", tile.columns) as u:
        keys = s.registers("key_words", words, "uint32")
        channels.load(keys, k, u)
        add_product(warp, at(scores, (k * tile.columns + u) * 4), queries, keys, words)
    return scores


def add_product(warp: WarpTile, scores: Any, queries: Any, tokens: Any, words: int) -> None:
    """Add the dot products of a tile's queries and 8 tokens to four numbers at `scores`.

    queries: from `load_queries`. tokens: the `words` words of the lane's own token.
    """
    for step in range(0, words, 2):
        warp.s.call(
            f"natc_mma_{SHORT[warp.spec.dtype]}",
            scores,
            *(queries[2 * step + i] for i in range(4)),
            *(tokens[step + w] for w in (0, 1)),
        )


def finish(
    warp: WarpTile,
    part: Part,
    scores: Any,
    rpb: Any | None,
    scale: Any,
    *,
    exact: bool,
    minus_lse: Sequence[Any] | None = None,
) -> None:
    """Turn scores into logits to the base of two, -inf for a key outside the query's window.

    exact: -inf even if that key's score is not finite. Otherwise such a logit may be NaN, and then
    the query's sums are NaN as well. minus_lse: of each half, for `exponent_of` instead of logits.
    """
    s, tile = warp.s, warp.tile
    # All rows of a tile attend to the same columns: a mask of columns is added to every logit.
    masks = _added_masks(warp) if tile.has_rows and not exact else None
    bias = None if rpb is None else biases(warp, part, rpb, masks)
    minus_infinity = tirx.const(-math.inf, "float32")
    for half in range(2):
        behind = None if masks is not None else _behind(warp, half)
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
            logit = (
                logit_of(scores[index], scale, added)
                if minus_lse is None
                else exponent_of(scores[index], scale, minus_lse[half], added)
            )
            valid = tirx.const(True, "bool")
            if masks is None:
                valid = _attends(warp, half, behind, u, e)
            if tile.has_rows and tile.is_whole:
                valid = tirx.And(valid, _at_edges(warp, part, half, k))
            s.store(scores, index, tirx.Select(valid, logit, minus_infinity))
    if tile.has_rows:
        _mask_rows(warp, part, scores)


def _behind(warp: WarpTile, half: int) -> Any:
    """Return the lane's first key less its query's first key, on the last axis."""
    first = warp.windows[half][-1].first
    return warp.s.let("behind", warp.axes[-1].first_key + 2 * warp.column - first)


def _attends(warp: WarpTile, half: int, behind: Any, u: Any, e: Any) -> Expr:
    """Return whether the column of key `e` of product `u` is in the window of a half's query."""
    return is_below(behind + (HALF * u + e), warp.windows[half][-1].count)


def _added_masks(warp: WarpTile) -> Any:
    """Return what to add to logits: 0 for a column in the window, else -inf; [product, 2]."""
    s, behind = warp.s, _behind(warp, 0)
    masks = s.registers("masks", 2 * warp.tile.columns)
    with s.unrolled("u", warp.tile.columns) as u, s.unrolled("e", 2) as e:
        attends = _attends(warp, 0, behind, u, e)
        zero, minus = (tirx.const(x, "float32") for x in (0.0, -math.inf))
        s.store(masks, 2 * u + e, tirx.Select(attends, zero, minus))
    return masks


def _at_edges(warp: WarpTile, part: Part, half: int, k: Any) -> Expr:
    """Return whether row `k` is in the half's window; only the first or last row may not be.

    For full windows: a part then has one row more than a window. The second half's window begins
    a row after the first half's, or in the same row at a border.
    """
    last = warp.tile.rows - 1
    if half == 0:
        return k != last
    later = warp.windows[1][-2].first > part.first_row
    return tirx.And(tirx.Or(k != 0, tirx.Not(later)), tirx.Or(k != last, later))


def _mask_rows(warp: WarpTile, part: Part, scores: Any) -> None:
    """Set logits of rows outside a half's window to -inf, if the part may have such rows."""
    s, tile = warp.s, warp.tile
    first, second = (warp.windows[half][-2] for half in range(2))
    if tile.is_whole:
        taps = warp.spec.kernel_size[-2]
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
    """Return the index into `biases` of a query of a half and key `e` of a product."""
    # The second half's queries lie a row below the first half's, so its biases are a row above.
    row = k + (1 - half) if tile.has_rows else half
    if tile.is_whole and tile.has_rows and not half:
        row = tirx.min(row, tile.rows - 1)  # the first half does not attend to the last row
    return (row * tile.columns + u) * 2 + e


def biases(warp: WarpTile, part: Part, rpb: Any, masks: Any | None = None) -> Any:
    """Return the lane's biases of a part, to the base of two: [row, product, 2].

    masks: from `_added_masks`, added to the biases; None adds nothing.
    """
    s, tile, spec = warp.s, warp.tile, warp.spec
    rows = tile.chunk_rows + (not tile.is_whole) if tile.has_rows else 2
    values = s.registers("bias", rows * tile.columns * 2)
    last = spec.kernel_size[-1] - 1
    start: Any = warp.head
    if part.plane is not None:
        taps = spec.kernel_size[0]
        start = start * (2 * taps - 1) + (part.plane - warp.axes[0].start + (taps - 1))
    low = s.let("low", warp.axes[-1].first_key - warp.axes[-1].start - warp.row + last)
    with s.unrolled("u", tile.columns) as u, s.unrolled("e", 2) as e:
        offset = s.let("bias_column", low + (2 * warp.column + (HALF * u + e)))
        if tile.has_rows:
            column = s.let("bias_at", within(offset, 2 * last))
            with s.unrolled("j", rows) as j:
                row = start * (2 * spec.kernel_size[-2] - 1) + _bias_row(warp, part, j)
                mask = None if masks is None else masks[2 * u + e]
                value = rpb_at(rpb, row * (2 * last + 1) + column, mask)
                s.store(values, (j * tile.columns + u) * 2 + e, value)
        else:
            with s.unrolled("half", 2) as half:
                column = within(offset - HALF * half, 2 * last)
                value = rpb_at(rpb, start * (2 * last + 1) + column)
                s.store(values, (half * tile.columns + u) * 2 + e, value)
    return values


def _bias_row(warp: WarpTile, part: Part, j: Any) -> Any:
    """Return the row of `rpb` for row j - 1 of a part and the first half; clamped if invalid."""
    last = warp.spec.kernel_size[-2] - 1
    first = part.first_row - warp.axes[-2].start + (last - 1)
    if warp.tile.is_whole:
        # Only j = 0 may be invalid, since a window contains its own query.
        return tirx.Select(j == 0, tirx.max(first, 0), first + j)
    return within(first + j, 2 * last)


def within(offset: Any, most: int) -> Any:
    """Return the index of a bias that is nearest to `offset`, 0 to `most`."""
    return tirx.max(tirx.min(offset, most), 0)


def rpb_at(rpb: Any, element: Any, mask: Any | None = None) -> Expr:
    """Return element number `element` of the bias, to the base of two, plus `mask`, if any."""
    added = tirx.const(0.0, "float32") if mask is None else mask
    return call("float32", "fmaf", element_of(rpb, element), tirx.const(LOG2_E, "float32"), added)
