"""The decisions of a sweep, and the sizes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from natc.spec import KernelSpec

_LINE = 16  # float32 numbers in a cache line
_COLUMNS = 2  # columns of queries in a tile


@dataclass(frozen=True)
class Form:
    """How the sweep of one spec is computed.

    lanes: numbers in a vector. strip: columns of keys in a panel. key_rows: rows of keys whose
    scores a tile holds at once. sum_queries: queries whose gradients are summed at once;
    sum_vectors: vectors of channels of each of these queries that are summed at once.
    scatter_vectors: vectors of channels of each of a tile's queries that are held in
    registers while their shares are added to the gradients of all keys. prefetch: 1
    to fetch the data of the next tiles into the cache ahead of time, else 0; 0 but on maps of
    rank 2.
    """

    spec: KernelSpec
    lanes: int
    strip: int
    key_rows: int
    sum_queries: int
    sum_vectors: int
    scatter_vectors: int
    prefetch: int

    @property
    def planes(self) -> int:
        """Planes of a window: 1 but on maps of rank 3."""
        return self.spec.kernel_size[0] if self.spec.rank == 3 else 1

    @property
    def rows(self) -> int:
        """Rows of a window in a plane: 1 on maps of rank 1, which are a row."""
        return self.spec.kernel_size[-2] if self.spec.rank > 1 else 1

    @property
    def columns(self) -> int:
        """Columns of a window."""
        return self.spec.kernel_size[-1]

    @property
    def tile_rows(self) -> int:
        """Rows of queries in a tile: 2, or 1 where a map is one row."""
        return min(2, self.spec.rank)

    @property
    def tile(self) -> int:
        """Queries of a tile."""
        return self.tile_rows * _COLUMNS

    @property
    def channels(self) -> int:
        """Channels of a query, key or value."""
        return self.spec.head_dim

    @property
    def copies_queries(self) -> bool:
        """Whether 16-bit queries are converted to float32 first."""
        return self.spec.dtype != "float32"

    @property
    def padded(self) -> int:
        """Columns that the windows of two adjacent queries cover, rounded up to whole vectors."""
        return whole(self.columns + 1, self.lanes)

    @property
    def vectors(self) -> int:
        """Vectors of a row of a window."""
        return self.padded // self.lanes

    @property
    def ring(self) -> int:
        """Rows of a plane that a panel holds: all that the windows of a tile's queries reach."""
        return self.rows + self.tile_rows - 1

    @property
    def pairs(self) -> int:
        """The most pairs of columns of queries in a strip."""
        return (self.strip - self.padded + self.columns + 2) // 2

    @property
    def plane_taps(self) -> int:
        """Numbers for the taps of one query in a plane."""
        return self.rows * self.padded

    @property
    def bias_row(self) -> int:
        """Numbers in a row of the bias, with room for vectors that read beyond its ends."""
        return whole(self.columns + self.padded, self.lanes)

    @property
    def bias_plane(self) -> int:
        """Numbers in a plane of the bias."""
        return (2 * self.rows - 1) * self.bias_row

    @property
    def bias(self) -> int:
        """Numbers of a bias in this form."""
        return (2 * self.planes - 1) * self.bias_plane

    @property
    def panel(self) -> int:
        """Numbers of a panel."""
        return self.planes * self.ring * self.strip * self.channels

    def layout(self) -> dict[str, int]:
        """Return where each part of a thread's scratch memory begins; `end` is its size."""
        queries = self.pairs * self.tile
        has_bias = self.spec.rpb
        sizes = {
            # Keys, then values, channel by channel; vectors reach beyond the last.
            "channels": 2 * self.panel + self.padded,
            "keys": self.panel,
            # Gradients of values, then of keys, which are not complete yet.
            "open": 2 * self.panel,
            # Queries, then gradients of outputs, as float32.
            "queries": 2 * queries * self.channels if self.copies_queries else 0,
            # First logits, which weights and then probabilities replace; behind them gradients of
            # probabilities, which gradients of logits replace.
            "taps": 2 * queries * self.planes * self.plane_taps,
            "bias": self.bias if has_bias else 0,
            # Even and odd columns have a table each, so that no store overlaps the next load.
            "d_bias": 2 * self.bias if has_bias else 0,
            "largest": queries,
            "total": queries,
            "mean": queries,
        }
        starts, end = {}, 0
        for name, size in sizes.items():
            starts[name] = end
            end = whole(end + size, _LINE)
        return {**starts, "end": end}


def whole(number: int, step: int) -> int:
    """Return a number, rounded up to a multiple of `step`."""
    return -(-number // step) * step
