"""The tile of queries that a warp computes, and the halo of keys around it: constants of a kernel.

A warp computes 16 queries of one head and one dilation group: two rows of 8 on the last two axes,
or, with one axis, 16 in a row. A half of a tile is 8 adjacent queries; half r is rows 8r .. 8r+7
of the operands of a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

from natc.spec import KernelSpec

HALF = 8  # queries of half a tile; keys of one product


@dataclass(frozen=True)
class Tile:
    """The queries of a warp, and of a block of warps.

    warps_0, warps_1: adjacent warps of a block on the axis of rows (1 with one axis) and on the
    axis of columns. most_products: how many products of 16 queries with 8 keys a lane may keep the
    scores of; each takes 4 registers.
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
        """Whether the halves of a tile are two rows; with one axis they are parts of one row."""
        return self.spec.rank > 1

    @property
    def rows(self) -> int:
        """Rows of keys that a tile's queries attend to, in one plane."""
        return self.spec.kernel_size[-2] + 1 if self.has_rows else 1

    @property
    def columns(self) -> int:
        """Products that cover a row of keys, as far as a row of the tile's queries attends."""
        return -(-(self.spec.kernel_size[-1] + self.extents[-1] - 1) // HALF)

    @property
    def chunks(self) -> int:
        """The number of parts that a plane's rows are divided into, so that registers suffice."""
        rows_per_part = max(1, self.most_products // self.columns)
        return -(-self.rows // rows_per_part)

    @property
    def chunk_rows(self) -> int:
        """Rows of a part; the last part may reach beyond the window."""
        return -(-self.rows // self.chunks)

    @property
    def products(self) -> int:
        """Products of a part: its rows times the products of a row."""
        return self.chunk_rows * self.columns

    @property
    def is_whole(self) -> bool:
        """Whether a plane is one part."""
        return self.chunks == 1

    @property
    def in_parts(self) -> bool:
        """Whether there are several parts: each rescales the sums of the parts before it."""
        return self.chunks > 1 or self.spec.rank == 3

    @property
    def is_wide(self) -> bool:
        """Whether tokens have so many channels that registers are scarce."""
        return is_wide(self.spec)

    @property
    def value_blocks(self) -> list[int]:
        """The blocks of the value's channels: see `channel_blocks`."""
        return channel_blocks(self.spec.value_dim)


def is_wide(spec: KernelSpec) -> bool:
    """Return whether tokens have so many channels that registers are scarce."""
    return max(spec.head_dim, spec.value_dim) > 64


def channel_blocks(dim: int) -> list[int]:
    """Split `dim` channels into blocks, which are summed in turn: 64s, then 32 and 16."""
    blocks = []
    for size in (64, 32, 16):
        while dim >= size:
            blocks.append(size)
            dim -= size
    return blocks
