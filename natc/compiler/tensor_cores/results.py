"""Stores the sums of a tile's queries or keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from natc.compiler.statements import at, call
from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.tile import HALF, channel_blocks
from natc.compiler.tensor_cores.warp_tile import Tensor, WarpTile


def store_channels(
    warp: WarpTile, tensor: Tensor, sums: Sequence[Any], half: int, token: Any, factor: Any
) -> None:
    """Store a half's sums times `factor` at `token`, rounded to the kernel's dtype.

    sums: one array for each block of channels (`channel_blocks`), of products as the instruction
    leaves them: [channel of the lane, 4].
    """
    s, pack, first = warp.s, f"natc_pack_{SHORT[warp.spec.dtype]}", 0
    for block, channels in zip(sums, channel_blocks(tensor.dim)):
        # Columns 2t and 2t + 1 of a product, which a lane holds, are adjacent channels.
        own = channels // HALF
        words = s.registers("words", own, "uint32")
        for word in range(own):
            column, v = divmod(2 * word, own)
            pair = (block[(v + e) * 4 + 2 * half + column] * factor for e in range(2))
            s.store(words, word, call("uint32", pack, *pair))
        element = token * tensor.stride + tensor.first + first + 2 * own * warp.column
        for start in range(0, own, 4):
            size = min(own - start, 4)
            s.call(f"natc_store_{4 * size}", tensor.address(element + 2 * start), at(words, start))
        first += channels
