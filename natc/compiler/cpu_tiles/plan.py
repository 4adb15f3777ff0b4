"""The decisions of a kernel of tiles, and the sizes that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from natc.spec import KernelSpec

# Values of the decision lanes_of.
KEYS, QUERIES = 0, 1
_LINE = 16  # float32 numbers in a cache line


@dataclass(frozen=True)
class Plan:
    """How a forward of one spec is computed.

    A window has three axes here: frames, rows and columns. An axis that the spec lacks has
    length 1.

    lanes_of: what lies in the lanes of a vector of scores: KEYS, adjacent keys of a row, or
    QUERIES, adjacent queries (`QueryLanePlan`). lanes: numbers in a vector. tile_rows,
    tile_columns: the size of a tile, whose queries share the keys they load. key_vectors: vectors
    of keys held in registers at once. sum_queries: queries whose weighted sums are held at once;
    sum_vectors: vectors of channels of each of these queries. strip: columns of a panel of keys
    and values. unroll: channels that one step of a dot product multiplies. units: if there are
    fewer heads and strips than this, rows are divided as well.
    """

    spec: KernelSpec
    lanes_of: int
    lanes: int
    tile_rows: int
    tile_columns: int
    key_vectors: int
    sum_queries: int
    sum_vectors: int
    strip: int
    unroll: int
    units: int

    @property
    def window(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a window."""
        frames, rows, columns = (1,) * (3 - self.spec.rank) + self.spec.kernel_size
        return frames, rows, columns

    @property
    def vectors(self) -> int:
        """Vectors of keys that cover the columns of a tile's windows."""
        return -(-(self.window[2] + self.tile_columns - 1) // self.lanes)

    @property
    def padded(self) -> int:
        """Numbers in a row of a query's scores: whole vectors that cover a tile's windows."""
        return self.vectors * self.lanes

    @property
    def starts(self) -> int:
        """The largest number of different windows along the columns of a strip."""
        return self.strip - self.window[2] + 1

    @property
    def key_width(self) -> int:
        """Columns of the panels of keys and values."""
        return self.strip

    @property
    def weight_stride(self) -> int:
        """How far apart the weights of a query's adjacent taps are."""
        return 1

    @property
    def ring(self) -> int:
        """Rows of keys that a panel holds of each frame: a power of two."""
        return 1 << (self.window[1] + self.tile_rows - 2).bit_length()

    @property
    def strip_queries(self) -> int:
        """The most columns of queries in a strip, in whole tiles."""
        most = self.starts + self.window[2] - 1
        return -(-most // self.tile_columns) * self.tile_columns

    @property
    def query_scores(self) -> int:
        """Numbers of one query's scores."""
        frames, rows, _ = self.window
        return frames * rows * self.padded

    @property
    def useful_lanes(self) -> float:
        """The share of a query's vectors of scores that lies in its window."""
        return self.window[2] / self.padded

    @property
    def bias_row(self) -> int:
        """Numbers in a row of the bias: `bias_front`, 2K-1, and room for vectors behind."""
        return _whole(self.bias_front + self.window[2] - 1 + self.padded, self.lanes)

    @property
    def bias_size(self) -> int:
        """Numbers of a head's bias with room around each row; 0 without a bias."""
        frames, rows, _ = self.window
        return (2 * frames - 1) * (2 * rows - 1) * self.bias_row if self.spec.rpb else 0

    @property
    def bias_front(self) -> int:
        """Numbers before a row of the bias, which a tile's last columns read."""
        return self.tile_columns - 1

    def layout(self) -> dict[str, int]:
        """Return where each part of a unit's scratch memory begins; `end` is its size."""
        frames = self.window[0]
        slots = self.strip_queries * self.tile_rows
        panel = frames * self.ring * self.key_width
        sizes = {
            # Vectors reach beyond the last key and tap.
            "keys": panel * self.spec.head_dim + self.padded,
            "values": panel * self.spec.value_dim,
            "queries": slots * self.spec.head_dim,
            "bias": self.bias_size,
            # The first row's vectors may begin before it.
            "before": self.tile_columns - 1,
            "scores": slots * self.query_scores,
            "largest": slots,
            "totals": slots * self.lanes,
            "inverse": slots,
        }
        return _starts(sizes)


@dataclass(frozen=True)
class QueryLanePlan(Plan):
    """A plan with adjacent queries in the lanes of vectors: a tile has as many columns as lanes.

    tile_columns: 1, since tiles have one vector of queries in each row. key_vectors: taps whose
    dot products are computed at once. strip: columns of queries, in whole tiles.
    """

    @property
    def key_width(self) -> int:
        """Columns of the panels: all keys of a strip's queries."""
        return _whole(self.strip + self.window[2] - 1, self.lanes)

    @property
    def weight_stride(self) -> int:
        """How far apart the weights of a query's adjacent taps are."""
        return self.strip

    @property
    def strip_queries(self) -> int:
        """The most columns of queries in a strip."""
        return self.strip

    @property
    def query_scores(self) -> int:
        """Numbers of one query's scores."""
        frames, rows, columns = self.window
        return frames * rows * columns

    @property
    def useful_lanes(self) -> float:
        """The share of a query's vectors of scores that lies in its window: all of them."""
        return 1.0

    def layout(self) -> dict[str, int]:
        """Return where each part of a unit's scratch memory begins; `end` is its size."""
        frames = self.window[0]
        slots = self.strip * self.tile_rows
        panel = frames * self.ring * self.key_width
        return _starts(
            {
                # Lanes that no query uses reach beyond the last key.
                "keys": panel * self.spec.head_dim + 2 * self.lanes,
                "values": panel * self.spec.value_dim,
                "queries": slots * self.spec.head_dim,
                "bias": self.bias_size,
                "scores": slots * self.query_scores,
                "largest": slots,
                "inverse": slots,
            }
        )


def plan_for(spec: KernelSpec, decisions: Mapping[str, int]) -> Plan:
    """Return the plan of decisions, which name all fields but the spec."""
    plan = QueryLanePlan if decisions["lanes_of"] == QUERIES else Plan
    return plan(spec, **decisions)


def _starts(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return where each part of the memory begins, and its size as `end`; parts begin lines."""
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name] = end
        end = _whole(end + size, _LINE)
    return {**starts, "end": end}


def _whole(number: int, step: int) -> int:
    return -(-number // step) * step
