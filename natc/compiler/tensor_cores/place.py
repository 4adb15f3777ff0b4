"""Where a warp is, and what its queries attend to: numbers that the kernel finds out at run time.

Indices count members of a dilation group, as in `natc.window`, whose formulas these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, NamedTuple

from tvm import tirx
from tvm.ir import Expr

from natc import window
from natc.compiler.te.axis import TENSOR_EXPRESSION
from natc.compiler.tensor_cores.statements import Statements, call
from natc.compiler.tensor_cores.tile import HALF, Tile

LANES = 32


class Tensor(NamedTuple):
    """A tensor by its elements in memory: those of one token are `stride` after the last's.

    pitch: of key and value, bytes from a row of tokens to the next of its dilation group.
    """

    buffer: Any
    dim: int  # channels of a head
    stride: Any
    first: Any  # the first channel of this head at token 0
    pitch: Any = None

    def address(self, element: Any) -> Expr:
        """Return the address of an element, counted from the tensor's first."""
        return tirx.address_of(_element(self.buffer, element))


def _element(buffer: Any, element: Any) -> Expr:
    """Return an element of a tensor, counted from its first."""
    index = (*[0] * (len(buffer.ty.shape) - 1), element)
    return buffer[index]


class TileAxis(NamedTuple):
    """An axis: its size, dilation group and members of the group; the first of the tile's queries.

    first_key: the first key of the tile's halo.
    """

    size: Any
    dilation: Any
    group: Any
    length: Any
    start: Any
    first_key: Any

    def position(self, index: Any) -> Any:
        """Return the position of a member of the group."""
        return index * self.dilation + self.group


class TileWindow(NamedTuple):
    """The keys of a query on an axis: `first`, and the others of `count` behind it."""

    first: Any
    count: Any

    def has(self, key: Any) -> Expr:
        """Return whether a key is attended to."""
        return tirx.And(key >= self.first, key < self.first + self.count)


class WarpTile:
    """The tile of a warp: s, where statements go; p, parameters by name; axes; lane numbers.

    row, column: number of the lane among those that hold a column, and a row, of a product.
    """

    def __init__(self, s: Statements, p: Mapping[str, Any], tile: Tile) -> None:
        self.packed = "qkv" in p
        self.s, self.p, self.tile, self.spec = s, p, tile, tile.spec
        tensor = p["qkv" if self.packed else "query"]
        self.batch_size, *self.sizes = list(tensor.ty.shape)[: self.spec.rank + 1]
        self.heads = tensor.ty.shape[-2]
        self.heads_kv = self.heads if self.packed else p["key"].ty.shape[-2]
        # Found before the launch: kernels take what they need of it as parameters.
        self.dilation = [p[f"dilation_{axis}"] for axis in range(self.spec.rank)]
        self.shortest, self.blocks, self.tiles = [], [], tirx.const(1)
        for axis, (size, dilation) in enumerate(zip(self.sizes, self.dilation)):
            self.shortest.append(s.name(f"shortest_{axis}", tirx.truncdiv(size, dilation)))
            covered = tile.extents[axis] * tile.warps[axis]
            blocks = tirx.truncdiv(tirx.truncdiv(size - 1, dilation), covered) + 1
            self.blocks.append(s.name(f"blocks_{axis}", blocks))
            self.tiles = self.tiles * (self.blocks[axis] * dilation)
        self._inverses: dict[Any, Any] = {}
        for axis, blocks in enumerate(self.blocks):
            self.prepare(f"blocks_{axis}", blocks)
            if axis:
                self.prepare(f"tiles_{axis}", blocks * self.dilation[axis])
        if not self.packed:
            self.prepare("group", p["group"])
        # Of each dim of key and value: bytes from a row to the next of its group.
        self._pitches: dict[int, Any] = {}
        own = 3 * self.heads if self.packed else self.heads_kv
        for dim in (self.spec.head_dim, self.spec.value_dim) if tile.has_rows else ():
            elements = self.dilation[-2] * self.sizes[-1] * own * dim
            # They may be more than an int counts.
            pitch = elements.astype("int64") * tirx.const(2, "int64")
            self._pitches[dim] = s.name(f"pitch_{dim}", pitch)

    def prepare(self, name: str, divisor: Any) -> None:
        """Find out before the launch what is needed to divide by a number."""
        divisor = self.s.name(f"all_{name}", divisor)
        inverse = self.s.name(f"inverse_{name}", tirx.truncdiv(tirx.const(2**31 - 1), divisor))
        self._inverses[name] = divisor, inverse

    def divided(self, number: Any, name: str) -> Any:
        """Return number / divisor for one of the divisors that were prepared before the launch."""
        return call("int32", "natc_divide", number, *self._inverses[name])

    def find(self, block: Any, head: Any, batch: Any, warp: Any, lane: Any) -> None:
        """Work out which tile a warp has, from its numbers in the grid and in its block."""
        s, rank = self.s, self.spec.rank
        self._numbers = block, head, batch, warp, lane
        self.head, self.batch = head, batch
        self.row = s.let("row", lane >> 2)
        self.column = s.let("column", lane & 3)
        warp = s.let("warp", call("int32", "natc_uniform", warp))
        starts: list[Any] = [None] * rank
        groups: list[Any] = [None] * rank
        rest, rest_warp = s.let("block", block), warp
        for axis in reversed(range(rank)):
            blocks, dilation = self.blocks[axis], self.dilation[axis]
            number = rest
            if axis:
                outer = s.let(f"rest_{axis}", self.divided(rest, f"tiles_{axis}"))
                number = s.let(f"number_{axis}", rest - outer * (blocks * dilation))
                rest = outer
            groups[axis] = s.let(f"group_{axis}", self.divided(number, f"blocks_{axis}"))
            in_group = number - groups[axis] * blocks
            warps, extent = self.tile.warps[axis], self.tile.extents[axis]
            own, rest_warp = rest_warp & (warps - 1), rest_warp >> (warps.bit_length() - 1)
            starts[axis] = s.let(f"start_{axis}", (in_group * warps + own) * extent)
        self.axes = []
        for axis in range(rank):
            size, dilation, short = self.sizes[axis], self.dilation[axis], self.shortest[axis]
            # The first groups have one member more where the dilation does not divide the size.
            more = tirx.Select(groups[axis] < size - short * dilation, 1, 0)
            length = s.let(f"length_{axis}", short + more)
            self.axes.append(TileAxis(size, dilation, groups[axis], length, starts[axis], None))

    @property
    def is_there(self) -> Expr:
        """Whether the tile has a query at all."""
        found = tirx.const(True, "bool")
        for axis in self.axes:
            found = tirx.And(found, axis.start < axis.length)
        return found

    def again(self, tile: Tile) -> WarpTile:
        """Return the same place for rows in other parts, as if nothing were known of its queries.

        What is rarely done twice is to keep no registers: compilers cannot tell that it begins
        with the same numbers.
        """
        found = copy(self)
        found.tile, s = tile, self.s
        found.axes = [
            axis._replace(start=s.let("again", call("int32", "natc_uniform", axis.start)))
            for axis in self.axes
        ]
        return found

    def anew(self, tile: Tile) -> WarpTile:
        """Return what `again` does, as if nothing at all were known."""
        found = copy(self)
        found.tile = tile
        block, *others = self._numbers
        found.find(call("int32", "natc_uniform", block), *others)
        return found

    def for_the_end(self) -> WarpTile:
        """Return the place as the end of the kernel takes it: registers may be too few to keep."""
        if not self.tile.is_wide:
            return self
        found = self.anew(self.tile)
        found.attend()
        return found

    def attend(self) -> None:
        """Work out the windows of the tile's queries."""
        s = self.s
        for number, axis in enumerate(self.axes):
            first = self.window(number, axis.start).first
            self.axes[number] = axis._replace(first_key=s.let(f"first_key_{number}", first))
        self.windows = self.halves(self.window)

    def halves(self, reach: Callable[[int, Any], TileWindow]) -> list[list[TileWindow]]:
        """Set query_index, and return what `reach` says of it: of each half, on each axis.

        query_index: the number of the lane's own site in its group, where the map ends at most.
        reach: is called with the number of an axis and that.
        """
        s = self.s
        self.query_index: list[list[Any]] = []
        found: list[list[TileWindow]] = []
        for half in range(2):
            inside = [
                s.let(f"query_{half}_{a}", tirx.min(i, self.axes[a].length - 1))
                if not half or not self.tile.has_rows or a == self.spec.rank - 2
                else self.query_index[0][a]
                for a, i in enumerate(self.indices(half))
            ]
            self.query_index.append(inside)
            found.append([])
            for number in range(self.spec.rank):
                if half and self.tile.has_rows and number != self.spec.rank - 2:
                    # The halves differ on one axis alone.
                    found[half].append(found[0][number])
                    continue
                reached = reach(number, inside[number])
                first = s.let(f"first_{half}_{number}", reached.first)
                count = s.let(f"count_{half}_{number}", reached.count)
                found[half].append(TileWindow(first, count))
        return found

    def indices(self, half: int) -> list[Any]:
        """Return the lane's own site of a half on each axis; it may be beyond the map."""
        found = [axis.start for axis in self.axes]
        found[-1] = found[-1] + self.row
        if self.tile.has_rows:
            found[-2] = found[-2] + half
        else:
            found[-1] = found[-1] + HALF * half
        return found

    def window(self, number: int, index: Any) -> TileWindow:
        """Return the window of a query, by its number in its group, on an axis."""
        return self.on_axis(window.window, number, index)

    def on_axis(self, formula: Callable[..., Any], number: int, index: Any) -> TileWindow:
        """Return what a formula of `natc.window` says of a member of a group on an axis."""
        found = formula(
            index,
            self.axes[number].length,
            self.spec.kernel_size[number],
            is_causal=self.p[f"is_causal_{number}"] > 0,
            ops=TENSOR_EXPRESSION,
        )
        return TileWindow(found.first, found.count)

    def token(self, index: list[Any]) -> Any:
        """Return the number of the token at members of the group, one for each axis."""
        found = self.batch
        for axis, member in zip(self.axes, index):
            found = found * axis.size + axis.position(member)
        return found

    def number(self, name: str, token: Any) -> Expr:
        """Return what a tensor without channels holds for a token and this head."""
        return _element(self.p[name], token * self.heads + self.head)

    def has_query(self, half: int) -> Expr:
        """Return whether the lane's query of a half is one of the map's."""
        exists = tirx.const(True, "bool")
        for axis, member in zip(self.axes, self.indices(half)):
            exists = tirx.And(exists, member < axis.length)
        return exists

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value as this head sees them."""
        spec, head = self.spec, self.head
        if self.packed:
            stride, size = 3 * self.heads * spec.head_dim, self.heads * spec.head_dim
            first, dim = self.s.let("first_channel", head * spec.head_dim), spec.head_dim
            q, k, v = (
                Tensor(self.p["qkv"], dim, stride, first + size * i, self._pitches.get(dim))
                for i in range(3)
            )
            return q, k, v
        query = self.of_heads("query", spec.head_dim)
        kv = self.head_kv()
        return query, self.of_kv("key", spec.head_dim, kv), self.of_kv("value", spec.value_dim, kv)

    def head_kv(self) -> Any:
        """Return the head of key and value that this one shares."""
        return self.s.let("head_kv", self.divided(self.head, "group"))

    def of_heads(self, name: str, dim: int) -> Tensor:
        """Return a tensor with the heads of the query as this head sees it."""
        return Tensor(self.p[name], dim, self.heads * dim, self.head * dim)

    def of_kv(self, name: str, dim: int, head: Any) -> Tensor:
        """Return a tensor with the heads of key and value as one of them sees it."""
        pitch = self._pitches.get(dim)
        return Tensor(self.p[name], dim, self.heads_kv * dim, head * dim, pitch)

    def output(self) -> Tensor:
        """Return the output as this head sees it."""
        return self.of_heads("output", self.spec.value_dim)
