"""Addresses of a tile's halo, and loads of the keys and values that a lane needs of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.statements import at, call
from natc.compiler.tensor_cores.tile import HALF
from natc.compiler.tensor_cores.warp_tile import Tensor, TileWindow, WarpTile


class Part:
    """Rows of a halo that are computed together.

    plane: with three axes, the rows' member on the first axis. row: the first row's member on the
    axis of rows; None with one axis.
    """

    def __init__(self, warp: WarpTile, plane: Any, row: Any) -> None:
        self.warp, self.tile = warp, warp.tile
        self.plane, self.first_row = plane, row

    def has_row(self, row: Any, half: int) -> Expr:
        """Return whether the queries of a half attend to the part's row number `row`."""
        window: TileWindow = self.warp.windows[half][-2]
        return window.has(self.first_row + row)

    def before_row_0(self) -> Any:
        """Return the number of the first token of row 0 of the map, in the part's plane."""
        members = [] if self.plane is None else [self.plane]
        return self.warp.row_start([*members, 0] if self.tile.has_rows else members)


class Tokens:
    """Addresses of the tokens that a lane loads: the same columns of every row of the halo.

    Registers hold the address of the map's first row and each token's offset in its row. One
    multiply-add then gives the address of a row, and another the address of a token in it.
    """

    def __init__(
        self,
        part: Part,
        tensor: Tensor,
        extents: tuple[int, ...],
        key: Callable[..., Any],
        channel: Any,
    ) -> None:
        """Compute the offsets, one for each index within `extents`.

        key: takes such an index and returns how many keys the token lies behind the halo's first
        key; a token beyond the map becomes the map's last. channel: the first channel to load.
        """
        self._part, self._tensor, self._extents = part, tensor, extents
        s, axis = part.warp.s, part.warp.axes[-1]
        first = tensor.address(part.before_row_0() * tensor.stride + tensor.first)
        self._row_0 = s.let("row_0", call("uint64", "natc_address", first))
        self._behind = s.registers("behind", math.prod(extents), "int32")
        with ExitStack() as loops:
            index = [loops.enter_context(s.unrolled("i", extent)) for extent in extents]
            member = tirx.min(axis.first_key + key(*index), axis.length - 1)
            behind = axis.position(member) * tensor.stride + channel
            s.store(self._behind, self._at(index), behind)

    def find(self, row: Any, *index: Any) -> Any:
        """Return the address of token `index` in row `row` of the part, or in the map's last."""
        address, part = self._row_0, self._part
        if part.tile.has_rows:
            row = tirx.min(part.first_row + row, part.warp.axes[-2].length - 1)
            address = call("uint64", "natc_row_at", address, row, self._tensor.pitch)
        return call("uint64", "natc_token_at", address, self._behind[self._at(index)])

    def load(self, words: Any, first: Any, size: int, address: Any, behind: Any = 0) -> None:
        """Load 1, 2 or 4 words from an address that `find` returned, plus `behind` channels."""
        s = self._part.warp.s
        if not isinstance(behind, int) or behind:
            address = address + tirx.convert(2 * behind).astype("int64").astype("uint64")
        s.call(f"natc_fetch_{4 * size}", at(words, first), address)

    def _at(self, index: Any) -> Any:
        flat: Any = 0
        for number, extent in zip(index, self._extents):
            flat = flat * extent + number
        return flat


class Channels:
    """Loads of all channels of a halo's tokens, ordered as products over channels need them.

    Of each 8 adjacent tokens, the four lanes with row r load token r.
    """

    def __init__(self, part: Part, tensor: Tensor) -> None:
        self._warp = warp = part.warp
        self._vectors = vectors(tensor.dim)
        own = self._vectors[0][1] * warp.column
        columns = (warp.tile.columns,)
        self._tokens = Tokens(part, tensor, columns, lambda u: HALF * u + warp.row, own)

    def load(self, words: Any, row: Any, column: Any) -> None:
        """Load the lane's channels of a token, two to a word, into `words`."""
        s = self._warp.s
        address = s.let("token_at", self._tokens.find(row, column))
        for start, size in self._vectors:
            behind: Any = start
            if size != self._vectors[0][1]:
                behind = start + (size - self._vectors[0][1]) * self._warp.column
            self._tokens.load(words, start // 8, size // 2, address, behind)


def vectors(dim: int) -> list[tuple[int, int]]:
    """Return (first channel, channels per lane) for each block of 32 channels.

    Four lanes share a block, so a lane has 8 channels, or 4 of a last block of 16. Both factors of
    a product have their channels in this same order, so that any order would do.
    """
    return [(start, min(dim - start, 32) // 4) for start in range(0, dim, 32)]
