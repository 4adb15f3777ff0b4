"""A warp's tile at run time: its position on the map, and the keys that its queries attend to.

Indices count members of a dilation group, as in `natc.window`, whose formulas are used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, NamedTuple

from tvm import tirx
from tvm.ir import Expr

from natc import window
from natc.compiler.statements import Statements, call, flat_index
from natc.compiler.te.axis import TENSOR_EXPRESSION
from natc.compiler.tensor_cores.tile import HALF, Tile

LANES = 32


class Tensor(NamedTuple):
    """A tensor as one head sees it: the offset of every channel in memory, in elements.

    stride: elements from one token to the next. pitch: for key and value, bytes from a row of
    tokens to the next row of the same dilation group.
    """

    buffer: Any
    dim: int  # channels of a head
    stride: Any
    first: Any  # the first channel of this head at token 0
    pitch: Any = None

    def address(self, element: Any) -> Expr:
        """Return the address of the tensor's element number `element`."""
        return tirx.address_of(element_of(self.buffer, element))


def element_of(tensor: Any, number: Any) -> Expr:
    """Return element `number` of a tensor in memory, counted over all its axes."""
    return tensor[flat_index(tensor, number)]


class TileAxis(NamedTuple):
    """One axis as a tile sees it.

    size: of the map. group: the tile's dilation group, which has `length` members. start: the
    member that is the tile's first query. first_key: the member that is the halo's first key.
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
    """The keys of a query on an axis: members first .. first+count-1 of its dilation group."""

    first: Any
    count: Any

    def has(self, key: Any) -> Expr:
        """Return whether the key is in the window."""
        return tirx.And(key >= self.first, key < self.first + self.count)


def is_below(number: Any, count: Any) -> Expr:
    """Return whether 0 <= number < count, by one comparison: negative numbers become large."""
    return number.astype("uint32") < count.astype("uint32")


class WarpTile:
    """The tile of a warp, and what its lanes need to address the call's tensors.

    s: the statements of the kernel, which methods add to. p: the function's parameters by name.
    axes: the tile on each axis. row, column: lane / 4 and lane % 4, which determine the lane's
    share of a matrix product (launcher/mma.cuh). windows, query_index: see `attend`, `halves`.
    """

    def __init__(self, s: Statements, p: Mapping[str, Any], tile: Tile) -> None:
        self.packed = "qkv" in p
        self.s, self.p, self.tile, self.spec = s, p, tile, tile.spec
        tensor = p["qkv" if self.packed else "query"]
        self.batch_size, *self.sizes = list(tensor.ty.shape)[: self.spec.rank + 1]
        self.heads = tensor.ty.shape[-2]
        self.heads_kv = self.heads if self.packed else p["key"].ty.shape[-2]
        # Computed on the host, before the launch; the kernel gets the results as parameters.
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
        # For head_dim and value_dim: bytes from a row to the next row of its dilation group.
        self._pitches: dict[int, Any] = {}
        own = 3 * self.heads if self.packed else self.heads_kv
        for dim in (self.spec.head_dim, self.spec.value_dim) if tile.has_rows else ():
            elements = self.dilation[-2] * self.sizes[-1] * own * dim
            # The product may exceed 32 bits.
            pitch = elements.astype("int64") * tirx.const(2, "int64")
            self._pitches[dim] = s.name(f"pitch_{dim}", pitch)

    def prepare(self, name: str, divisor: Any) -> None:
        """Compute on the host what `divided` needs to divide by `divisor` in the kernel."""
        divisor = self.s.name(f"all_{name}", divisor)
        inverse = self.s.name(f"inverse_{name}", tirx.truncdiv(tirx.const(2**31 - 1), divisor))
        self._inverses[name] = divisor, inverse

    def divided(self, number: Any, name: str) -> Any:
        """Return number / divisor for the divisor that `prepare` was given under this name."""
        return call("int32", "natc_divide", number, *self._inverses[name])

    def locate(self, block: Any, head: Any, batch: Any, warp_index: Any, lane: Any) -> None:
        """Compute the tile of a warp from its indices in the grid and in its block."""
        s, rank = self.s, self.spec.rank
        self._indices = block, head, batch, warp_index, lane
        self.head, self.batch = head, batch
        self.row = s.let("row", lane >> 2)
        self.column = s.let("column", lane & 3)
        warp_index = s.let("warp", call("int32", "natc_uniform", warp_index))
        starts: list[Any] = [None] * rank
        groups: list[Any] = [None] * rank
        outer, warp_left = s.let("block", block), warp_index
        for axis in reversed(range(rank)):
            blocks, dilation = self.blocks[axis], self.dilation[axis]
            index = outer
            if axis:
                quotient = s.let(f"rest_{axis}", self.divided(outer, f"tiles_{axis}"))
                index = s.let(f"number_{axis}", outer - quotient * (blocks * dilation))
                outer = quotient
            groups[axis] = s.let(f"group_{axis}", self.divided(index, f"blocks_{axis}"))
            in_group = index - groups[axis] * blocks
            warps, extent = self.tile.warps[axis], self.tile.extents[axis]
            own, warp_left = warp_left & (warps - 1), warp_left >> (warps.bit_length() - 1)
            starts[axis] = s.let(f"start_{axis}", (in_group * warps + own) * extent)
        self.axes = []
        for axis in range(rank):
            size, dilation, short = self.sizes[axis], self.dilation[axis], self.shortest[axis]
            # If the dilation does not divide the size, the first groups have one member more.
            more = tirx.Select(groups[axis] < size - short * dilation, 1, 0)
            length = s.let(f"length_{axis}", short + more)
            self.axes.append(TileAxis(size, dilation, groups[axis], length, starts[axis], None))

    @property
    def has_queries(self) -> Expr:
        """Whether the tile has any query: tiles of the last blocks may lie beyond the map."""
        on_map = tirx.const(True, "bool")
        for axis in self.axes:
            on_map = tirx.And(on_map, axis.start < axis.length)
        return on_map

    def with_new_starts(self, tile: Tile) -> WarpTile:
        """Return this warp tile with another `tile`, to compute its windows a second time.

        For code that runs rarely. The compiler must not keep registers for it, so the starts pass
        through a function that hides from the compiler that they are the same numbers.
        """
        copied = copy(self)
        copied.tile, s = tile, self.s
        copied.axes = [
            axis._replace(start=s.let("again", call("int32", "natc_uniform", axis.start)))
            for axis in self.axes
        ]
        return copied

    def recomputed(self, tile: Tile) -> WarpTile:
        """Return this warp tile with another `tile`, located again from the grid's indices.

        As `with_new_starts`, but not even the starts stay in registers.
        """
        copied = copy(self)
        copied.tile = tile
        block, *indices = self._indices
        copied.locate(call("int32", "natc_uniform", block), *indices)
        return copied

    def for_the_end(self) -> WarpTile:
        """Return the warp tile to store results with; recomputed if registers are scarce."""
        if not self.tile.is_wide:
            return self
        copied = self.recomputed(self.tile)
        copied.attend()
        return copied

    def attend(self) -> None:
        """Compute `windows`: for each half and axis, the window of the lane's own query."""
        s = self.s
        for number, axis in enumerate(self.axes):
            first = self.window(number, axis.start).first
            self.axes[number] = axis._replace(first_key=s.let(f"first_key_{number}", first))
        self.windows = self.halves(self.window)

    def halves(self, reach: Callable[[int, Any], TileWindow]) -> list[list[TileWindow]]:
        """Set `query_index`, and return `reach(axis, index)` for each half and axis.

        query_index: for each half and axis, the lane's own site as a member of its group; the last
        member if the site lies beyond the map.
        """
        s = self.s
        self.query_index: list[list[Any]] = []
        reached: list[list[TileWindow]] = []
        for half in range(2):
            inside = [
                s.let(f"query_{half}_{a}", tirx.min(i, self.axes[a].length - 1))
                if not half or not self.tile.has_rows or a == self.spec.rank - 2
                else self.query_index[0][a]
                for a, i in enumerate(self.indices(half))
            ]
            self.query_index.append(inside)
            reached.append([])
            for number in range(self.spec.rank):
                if half and self.tile.has_rows and number != self.spec.rank - 2:
                    # The halves differ on the axis of rows only.
                    reached[half].append(reached[0][number])
                    continue
                members = reach(number, inside[number])
                first = s.let(f"first_{half}_{number}", members.first)
                count = s.let(f"count_{half}_{number}", members.count)
                reached[half].append(TileWindow(first, count))
        return reached

    def indices(self, half: int) -> list[Any]:
        """Return the lane's own site of a half on each axis; it may lie beyond the map."""
        members = [axis.start for axis in self.axes]
        members[-1] = members[-1] + self.row
        if self.tile.has_rows:
            members[-2] = members[-2] + half
        else:
            members[-1] = members[-1] + HALF * half
        return members

    def window(self, number: int, index: Any) -> TileWindow:
        """Return the window of the query that is member `index` of its group on axis `number`."""
        return self.range_on_axis(window.window, number, index)

    def range_on_axis(self, formula: Callable[..., Any], number: int, index: Any) -> TileWindow:
        """Return `window.window` or `window.queries_of` of member `index` on axis `number`."""
        members = formula(
            index,
            self.axes[number].length,
            self.spec.kernel_size[number],
            is_causal=self.p[f"is_causal_{number}"] > 0,
            ops=TENSOR_EXPRESSION,
        )
        return TileWindow(members.first, members.count)

    def token(self, index: list[Any]) -> Any:
        """Return the number of the token at the given member of its group on each axis."""
        token = self.batch
        for axis, member in zip(self.axes, index):
            token = token * axis.size + axis.position(member)
        return token

    def row_start(self, index: list[Any]) -> Any:
        """Return the number of a row's first token; index: a member on each axis but the last."""
        return self.token(index) * self.axes[-1].size

    def scalar(self, name: str, token: Any) -> Expr:
        """Return the element of a tensor without channels (lse, delta) for a token."""
        return element_of(self.p[name], token * self.heads + self.head)

    def has_query(self, half: int) -> Expr:
        """Return whether the lane's query of a half lies on the map."""
        exists = tirx.const(True, "bool")
        for axis, member in zip(self.axes, self.indices(half)):
            exists = tirx.And(exists, member < axis.length)
        return exists

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value as the warp's head sees them."""
        spec, head = self.spec, self.head
        if self.packed:
            stride, size = 3 * self.heads * spec.head_dim, self.heads * spec.head_dim
            first, dim = self.s.let("first_channel", head * spec.head_dim), spec.head_dim
            q, k, v = (
                Tensor(self.p["qkv"], dim, stride, first + size * i, self._pitches.get(dim))
                for i in range(3)
            )
            return q, k, v
        query = self.query_tensor("query", spec.head_dim)
        kv = self.head_kv()
        return (
            query,
            self.kv_tensor("key", spec.head_dim, kv),
            self.kv_tensor("value", spec.value_dim, kv),
        )

    def head_kv(self) -> Any:
        """Return the head of key and value that the warp's head of the query reads."""
        return self.s.let("head_kv", self.divided(self.head, "group"))

    def query_tensor(self, name: str, dim: int) -> Tensor:
        """Return a tensor that has the query's heads, as the warp's head sees it."""
        return Tensor(self.p[name], dim, self.heads * dim, self.head * dim)

    def kv_tensor(self, name: str, dim: int, head: Any) -> Tensor:
        """Return key or value as the head `head` of key and value sees it."""
        pitch = self._pitches.get(dim)
        return Tensor(self.p[name], dim, self.heads_kv * dim, head * dim, pitch)

    def output(self) -> Tensor:
        """Return the output as the warp's head sees it."""
        return self.query_tensor("output", self.spec.value_dim)
