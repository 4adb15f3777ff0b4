"""The running softmax of a tile's queries, over the parts of their halo."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from natc.compiler.statements import call
from natc.compiler.tensor_cores.warp_tile import WarpTile


class RunningSoftmax:
    """Of each half, the largest logit and the lane's share of the sum of exponentials."""

    def __init__(self, warp: WarpTile) -> None:
        self.s = warp.s
        self.largest = self.s.registers("largest", 2)
        self.total = self.s.registers("total", 2)

    def clear(self) -> None:
        """Set the largest logit to -inf, and the sum to 0."""
        s = self.s
        with s.unrolled("half", 2) as half:
            s.store(self.largest, half, tirx.const(-math.inf, "float32"))
            # Compilers leave out an addition to -0, which changes nothing.
            s.store(self.total, half, tirx.const(-0.0, "float32"))

    def add(self, warp: WarpTile, scores: Any) -> Any:
        """Turn a part's logits into unnormalized probabilities.

        Return each half's factor for the sums of earlier parts.
        """
        s, tile = warp.s, warp.tile
        zero, minus = (tirx.const(x, "float32") for x in (0.0, -math.inf))

        @contextmanager
        def each() -> Iterator[tuple[Any, Any, Any]]:
            """Run the block for every score, given (product, half, index of the score)."""
            with (
                s.unrolled("n", tile.products) as n,
                s.unrolled("half", 2) as half,
                s.unrolled("e", 2) as e,
            ):
                yield n, half, n * 4 + 2 * half + e

        part_largest = s.registers("found", 2)
        with s.unrolled("half", 2) as half:
            s.store(part_largest, half, minus)
        with each() as (_, half, i):
            s.store(part_largest, half, tirx.max(part_largest[half], scores[i]))
        base, corrections = s.registers("base", 2), s.registers("corrections", 2)
        for half in range(2):
            largest = s.let(f"largest_{half}", call("float32", "natc_row_max", part_largest[half]))
            if tile.in_parts:
                largest = s.let(f"now_{half}", tirx.max(largest, self.largest[half]))
            # If all logits are -inf, subtract nothing: their exponentials are 0 already.
            s.store(base, half, tirx.Select(largest == minus, zero, largest))
            if tile.in_parts:
                # 0 in the first part, where the largest logit so far is -inf.
                factor = call("float32", "natc_exp2", self.largest[half] - base[half])
                s.store(corrections, half, factor)
                s.store(self.total, half, self.total[half] * corrections[half])
            s.store(self.largest, half, largest)
        with each() as (n, half, i):
            weight = call("float32", "natc_exp2", scores[i] - base[half])
            if tile.has_rows and tile.is_whole:
                # Only the second half attends to the last row.
                attends = tirx.Or(half != 0, n < (tile.rows - 1) * tile.columns)
                weight = tirx.Select(attends, weight, zero)
            s.store(scores, i, weight)
            s.store(self.total, half, self.total[half] + scores[i])
        return corrections
