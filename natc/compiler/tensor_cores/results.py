"""Storing what a tile's queries have summed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from natc.compiler.tensor_cores.kernel import SHORT
from natc.compiler.tensor_cores.place import Tensor, WarpTile
from natc.compiler.tensor_cores.statements import at, call
from natc.compiler.tensor_cores.tile import HALF, channel_blocks


def store_channels(
    place: WarpTile, tensor: Tensor, sums: Sequence[Any], half: int, token: Any, factor: Any
) -> None:
    """Store a half's sums times a factor, rounded.

    sums: of each block of channels (`channel_blocks`), products [channel of a lane's, 4].
    """
    s, pack, first = place.s, f"natc_pack_{SHORT[place.spec.dtype]}", 0
    for block, channels in zip(sums, channel_blocks(tensor.dim)):
        # A lane's columns 2t and 2t + 1 are channels side by side.
        own = channels // HALF
        words = s.registers("words", own, "uint32")
        for word in range(own):
            column, v = divmod(2 * word, own)
            pair = (block[(v + e) * 4 + 2 * half + column] * factor for e in range(2))
            s.store(words, word, call("uint32", pack, *pair))
        element = token * tensor.stride + tensor.first + first + 2 * own * place.column
        for start in range(0, own, 4):
            size = min(own - start, 4)
            s.call(f"natc_store_{4 * size}", tensor.address(element + 2 * start), at(words, start))
        first += channels
