"""Windows of another size: relative positional biases are interpolated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from natc.nn import NeighborhoodAttention2D


def resized_bias(rpb: Tensor, kernel_size: Sequence[int]) -> Tensor:
    """Return `rpb` `[heads, 2*K0-1, 2*K1-1]` for windows of `kernel_size`.

    By bicubic interpolation, as the published 11x11 weights came from 7x7.
    """
    offsets = [2 * size - 1 for size in kernel_size]
    if list(rpb.shape[1:]) == offsets:
        return rpb
    resized = nn.functional.interpolate(rpb[None].float(), offsets, mode="bicubic")
    return resized[0].to(rpb.dtype)


def set_kernel_size(
    attention: NeighborhoodAttention2D, kernel_size: int | tuple[int, int]
) -> None:
    """Give an attention module windows of another size, and interpolate its bias."""
    like = NeighborhoodAttention2D(
        attention.dim, attention.num_heads, kernel_size, rel_pos_bias=False
    )
    attention.kernel_size = like.kernel_size
    if attention.rpb is not None:
        with torch.no_grad():
            resized = resized_bias(attention.rpb, like.kernel_size)
        attention.rpb = nn.Parameter(resized, requires_grad=attention.rpb.requires_grad)
