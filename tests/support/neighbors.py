"""Which keys a query attends to, by listing and searching: a second opinion on `natc.window`.

Nothing here is shared with `natc.window` or `natc.reference`, and no formula of theirs is used.
An axis is taken apart into its dilation groups, as lists; a window is chosen from all runs of
consecutive members by how well it surrounds its leader.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Neighbor(NamedTuple):
    """One key of one query on one axis."""

    position: int  # on the axis
    tap: int  # its place in the window, from 0
    bias: int  # index into 2*kernel_size-1 relative positions


def neighbors(
    length: int, kernel_size: int, dilation: int, stride: int, is_causal: bool
) -> list[list[Neighbor]]:
    """List, for each query of an axis, the keys that it attends to, in the order of their taps.

    Args:
        length: positions on the axis, >= 1.
        kernel_size: most keys, >= 1.
        dilation: distance between neighbors, >= 1.
        stride: so many successive members of a dilation group share a window, <= kernel_size.
        is_causal: a query attends to no key after itself.
    """
    rows: list[list[Neighbor]] = []
    for query in range(length):
        group = [position for position in range(length) if (position - query) % dilation == 0]
        own = group.index(query)
        sharing = [m for m in range(len(group)) if m // stride == own // stride]
        if is_causal:
            # The last query that shares the window sees all of it; each sees its past.
            window = [m for m in range(len(group)) if 0 <= sharing[-1] - m < kernel_size]
            window = [m for m in window if m <= own]
        else:
            window = _around(sharing[min(stride // 2, len(sharing) - 1)], len(group), kernel_size)
        rows.append(
            [
                Neighbor(group[m], tap, (group[m] - query) // dilation + kernel_size - 1)
                for tap, m in enumerate(window)
            ]
        )
    return rows


def _around(leader: int, members: int, kernel_size: int) -> list[int]:
    """Return the run of members that has most nearly as many before the leader as after it.

    Of two equally good runs (there are two where kernel_size is even) the earlier.
    """
    size = min(kernel_size, members)
    runs = [list(range(start, start + size)) for start in range(members - size + 1)]

    def imbalance(run: list[int]) -> int:
        return abs((leader - run[0]) - (run[-1] - leader))

    return min((run for run in runs if leader in run), key=lambda run: (imbalance(run), run[0]))


@dataclass(frozen=True)
class Pairs:
    """Every (query, key) that attends on a map, one entry each; positions in row-major order."""

    query: Integers  # position of the query
    key: Integers  # position of the key
    tap: Integers  # row-major place in the window
    bias: Integers  # row-major index into the relative positions
    positions: int  # of the map
    taps: int  # of a whole window


def pairs(
    spatial: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> Pairs:
    """List the pairs of a map of any rank, in the order of queries, then of taps.

    Args: `neighbors`' arguments, one for each axis.
    """
    axes = [
        neighbors(*axis)
        for axis in zip(spatial, kernel_size, dilation, stride, is_causal, strict=True)
    ]
    relative = [2 * size - 1 for size in kernel_size]
    rows = []
    for query in itertools.product(*(range(length) for length in spatial)):
        at = _row_major(query, spatial)
        for neighbor in itertools.product(*(axis[i] for axis, i in zip(axes, query, strict=True))):
            rows.append(
                (
                    at,
                    _row_major(
                        [neighbor_of_axis.position for neighbor_of_axis in neighbor], spatial
                    ),
                    _row_major(
                        [neighbor_of_axis.tap for neighbor_of_axis in neighbor], kernel_size
                    ),
                    _row_major([neighbor_of_axis.bias for neighbor_of_axis in neighbor], relative),
                )
            )
    at_query, at_key, tap, bias = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Pairs(
        at_query, at_key, tap, bias, int(np.prod(spatial)), taps=int(np.prod(kernel_size))
    )


def _row_major(index: Sequence[int], shape: Sequence[int]) -> int:
    flat = 0
    for position, length in zip(index, shape, strict=True):
        flat = flat * length + position
    return flat
