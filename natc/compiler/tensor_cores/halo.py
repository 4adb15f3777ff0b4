"""Where a tile's halo is in memory, and loading what a lane needs of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.tensor_cores.place import Tensor, TileWindow, WarpTile
from natc.compiler.tensor_cores.statements import at, call
from natc.compiler.tensor_cores.tile import HALF


class Part:
    """Rows of a halo that are computed at once.

    plane: the first index of the rows, where there are three axes. row: index of the first row, or
    None where there is one axis.
    """

    def __init__(self, place: WarpTile, plane: Any, row: Any) -> None:
        self.place, self.tile = place, place.tile
        self.plane, self.first_row = plane, row

    def has_row(self, row: Any, half: int) -> Expr:
        """Return whether the queries of a half attend to a row."""
        window: TileWindow = self.place.windows[half][-2]
        return window.has(self.first_row + row)

    def before_row_0(self) -> Any:
        """Return the token that member 0 of the last axis' group 0 would be, in the first row."""
        place = self.place
        members = [] if self.plane is None else [self.plane]
        if self.tile.has_rows:
            members.append(0)
        found: Any = place.batch
        for axis, member in zip(place.axes, members):
            found = found * axis.size + axis.position(member)
        return found * place.axes[-1].size


class Tokens:
    """Tokens of a halo that a lane loads: some of a row, the same ones of each row.

    What is kept is where they are in a row, and the address of the first row of the map: one
    instruction each, a multiplication and addition, finds a row and a token in it.
    """

    def __init__(
        self,
        part: Part,
        tensor: Tensor,
        extents: tuple[int, ...],
        key: Callable[..., Any],
        channel: Any,
    ) -> None:
        """Find tokens, one for each index within `extents`.

        key: takes an index; how far a token is behind the row's first. Those beyond the map are
        the last. channel: of the head's, the first that is loaded.
        """
        self._part, self._tensor, self._extents = part, tensor, extents
        s, axis = part.place.s, part.place.axes[-1]
        first = tensor.address(part.before_row_0() * tensor.stride + tensor.first)
        self._row_0 = s.let("row_0", call("uint64", "natc_address", first))
        self._behind = s.registers("behind", math.prod(extents), "int32")
        with ExitStack() as loops:
            index = [loops.enter_context(s.unrolled("i", extent)) for extent in extents]
            member = tirx.min(axis.first_key + key(*index), axis.length - 1)
            behind = axis.position(member) * tensor.stride + channel
            s.store(self._behind, self._at(index), behind)

    def find(self, row: Any, *index: Any) -> Any:
        """Return the address of a token in a row of the part; beyond the map it is the last's."""
        found, part = self._row_0, self._part
        if part.tile.has_rows:
            row = tirx.min(part.first_row + row, part.place.axes[-2].length - 1)
            found = call("uint64", "natc_row_at", found, row, self._tensor.pitch)
        return call("uint64", "natc_token_at", found, self._behind[self._at(index)])

    def load(self, words: Any, first: Any, size: int, address: Any, behind: Any = 0) -> None:
        """Load `size` words, 1, 2 or 4, of a token that `find` found, some channels behind."""
        s = self._part.place.s
        if not isinstance(behind, int) or behind:
            address = address + tirx.convert(2 * behind).astype("int64").astype("uint64")
        s.call(f"natc_fetch_{4 * size}", at(words, first), address)

    def _at(self, index: Any) -> Any:
        found: Any = 0
        for number, extent in zip(index, self._extents):
            found = found * extent + number
        return found


class Channels:
    """All channels of a halo's tokens, in the order in which products over channels take them.

    Of each 8 tokens side by side, lanes `row` load token `row`.
    """

    def __init__(self, part: Part, tensor: Tensor) -> None:
        self._place = place = part.place
        self._vectors = vectors(tensor.dim)
        own = self._vectors[0][1] * place.column
        columns = (place.tile.columns,)
        self._tokens = Tokens(part, tensor, columns, lambda u: HALF * u + place.row, own)

    def load(self, words: Any, row: Any, column: Any) -> None:
        """Load the words of a token, half as many as channels of a lane."""
        s = self._place.s
        found = s.let("token_at", self._tokens.find(row, column))
        for start, size in self._vectors:
            behind: Any = start
            if size != self._vectors[0][1]:
                behind = start + (size - self._vectors[0][1]) * self._place.column
            self._tokens.load(words, start // 8, size // 2, found, behind)


def vectors(dim: int) -> list[tuple[int, int]]:
    """Return what each of four lanes loads of a token: of which 32 channels how many at once.

    8 channels, or 4 where 16 are left over: both sides of a product have their channels in the
    same order, whichever it is.
    """
    return [(start, min(dim - start, 32) // 4) for start in range(0, dim, 32)]
