"""The tile of queries that a warp computes, and the halo of keys around it: constants of a kernel.

A warp takes 16 queries of one head and one dilation group: two rows of 8 on the last two axes, or
16 in a row where there is one axis. Half r of a tile are 8 queries side by side; they are rows
8r .. 8r+7 of the fragments of a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

from natc.spec import KernelSpec

HALF = 8  # queries of half a tile; keys of one product


@dataclass(frozen=True)
class Tile:
    """What a warp and a block of warps cover.

    warps_0, warps_1: warps of a block side by side on the axis of rows (with one axis: 1) and on
    that of columns. most_products: products of 16 queries with 8 keys whose scores a lane keeps,
    4 registers each.
    """

    spec: KernelSpec
    warps_0: int
    warps_1: int
    most_products: int

    @property
    def extents(self) -> tuple[int, ...]:
        """Queries of a tile on each axis."""
        return {1: (2 * HALF,), 2: (2, HALF), 3: (1, 2, HALF)}[self.spec.rank]

    @property
    def warps(self) -> tuple[int, ...]:
        """Warps of a block on each axis."""
        return (1, self.warps_0, self.warps_1)[-self.spec.rank :]

    @property
    def has_rows(self) -> bool:
        """Whether the halves of a tile are two rows, not two parts of one."""
        return self.spec.rank > 1

    @property
    def rows(self) -> int:
        """Rows of keys that a tile's queries attend to, in one plane."""
        return self.spec.kernel_size[-2] + 1 if self.has_rows else 1

    @property
    def columns(self) -> int:
        """Products that cover a row of keys: the windows of all the queries in it."""
        return -(-(self.spec.kernel_size[-1] + self.extents[-1] - 1) // HALF)

    @property
    def chunks(self) -> int:
        """In how many parts the rows of a plane are taken, so that registers suffice."""
        at_once = max(1, self.most_products // self.columns)
        return -(-self.rows // at_once)

    @property
    def chunk_rows(self) -> int:
        """Rows of one part; the last may reach beyond the window."""
        return -(-self.rows // self.chunks)

    @property
    def products(self) -> int:
        """Products of one part with all its rows."""
        return self.chunk_rows * self.columns

    @property
    def is_whole(self) -> bool:
        """Whether a plane is one part."""
        return self.chunks == 1

    @property
    def in_parts(self) -> bool:
        """Whether there is more than one part, each of which corrects what the last summed up."""
        return self.chunks > 1 or self.spec.rank == 3

    @property
    def is_wide(self) -> bool:
        """Whether tokens have so many channels that registers are scarce."""
        return is_wide(self.spec)

    @property
    def value_blocks(self) -> list[int]:
        """Channels of the value that are summed at a time."""
        return channel_blocks(self.spec.value_dim)


def is_wide(spec: KernelSpec) -> bool:
    """Return whether tokens have so many channels that registers are scarce."""
    return max(spec.head_dim, spec.value_dim) > 64


def channel_blocks(dim: int) -> list[int]:
    """Return the channels that are summed at a time: 64, or 32 and 16 of what is left."""
    found = []
    for size in (64, 32, 16):
        while dim >= size:
            found.append(size)
            dim -= size
    return found
