"""Neighborhood attention as modules: `natc.functional` between two linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from natc.errors import ArgumentError
from natc.functional import na1d_qkvpacked, na2d_qkvpacked, na3d_qkvpacked
from natc.functional.arguments import options
from natc.reference.validate import check_dense

PerAxis = int | Sequence[int]
Flags = bool | Sequence[bool]

_ATTENTION = {1: na1d_qkvpacked, 2: na2d_qkvpacked, 3: na3d_qkvpacked}
_AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}


class _NeighborhoodAttention(nn.Module):
    """The modules of every rank; a subclass sets `rank`."""

    rank: int

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: PerAxis,
        *,
        stride: PerAxis = 1,
        dilation: PerAxis = 1,
        is_causal: Flags = False,
        rel_pos_bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        pad_small_maps: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads != 0:
            raise ArgumentError(
                f"dim must be a positive multiple of num_heads, not dim={dim} with "
                f"num_heads={num_heads}."
            )
        if not 0.0 <= proj_drop < 1.0:
            raise ArgumentError(f"proj_drop must be in [0, 1), not {proj_drop!r}.")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        checked = options(
            self.rank, self.head_dim, (kernel_size, stride, dilation, is_causal, qk_scale)
        )
        self.kernel_size, self.stride = checked.kernel_size, checked.stride
        self.dilation, self.is_causal = checked.dilation, checked.is_causal
        self.scale = checked.scale
        self.pad_small_maps = pad_small_maps

        self.rpb: nn.Parameter | None
        if rel_pos_bias:
            offsets = [2 * size - 1 for size in self.kernel_size]
            self.rpb = nn.Parameter(torch.empty(num_heads, *offsets))
        else:
            self.register_parameter("rpb", None)
        self.reset_parameters()
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(float(proj_drop))

    def reset_parameters(self) -> None:
        """Initialize `rpb` at random; the linear layers have their own `reset_parameters`."""
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02, a=-2.0, b=2.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention of x to itself, `[batch, *axes, dim]` like x."""
        check_dense("x", x)
        if x.dim() != self.rank + 2 or x.shape[-1] != self.dim:
            raise ArgumentError(
                f"x must have shape [batch, {_AXES[self.rank]}, {self.dim}], not {list(x.shape)}."
            )
        whole = tuple(slice(size) for size in x.shape[:-1])
        if self.pad_small_maps:
            x = self._pad(x)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        output = _ATTENTION[self.rank](
            qkv,
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            is_causal=self.is_causal,
            scale=self.scale,
            rpb=self.rpb,
        ).flatten(-2)
        return self.proj_drop(self.proj(output[whole] if self.pad_small_maps else output))

    def _pad(self, x: Tensor) -> Tensor:
        """Zero-pad `[B, *axes, C]` at the end of each axis to at least one whole window."""
        needed = [k * d for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        missing = [max(0, n - size) for n, size in zip(needed, x.shape[1:-1], strict=True)]
        if any(missing):
            # As (before, after), from the last axis to the first; (0, 0) is for the channels.
            amounts = [0, 0, *(amount for after in reversed(missing) for amount in (0, after))]
            x = nn.functional.pad(x, amounts)
        return x

    def extra_repr(self) -> str:
        """Return the settings that `print(module)` shows."""
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, is_causal={self.is_causal}, "
            f"rel_pos_bias={self.rpb is not None}, pad_small_maps={self.pad_small_maps}"
        )


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Multi-head self-attention of each pixel to its window of kernel_size pixels.

    Input and output are `[batch, height, width, dim]`. The parameters are `qkv.weight`
    `[3*dim, dim]` (rows: query, key, value), `qkv.bias` `[3*dim]`, `rpb`
    `[num_heads, 2*K0-1, 2*K1-1]`, `proj.weight` `[dim, dim]` and `proj.bias` `[dim]`, as in
    NATTEN's modules. Dropout of attention probabilities is not offered, because a fused kernel
    never stores them.

    Args:
        dim: channels of the input and output; a multiple of `num_heads`.
        num_heads: number of heads, at least 1.
        kernel_size: window height and width in keys, at least 1; one int or a pair.
        stride: queries that share a window, 1 to `kernel_size`; one int or a pair.
        dilation: distance between neighboring keys in pixels, at least 1; one int or a pair.
        is_causal: whether an axis hides the keys after the query; one bool or a pair.
        rel_pos_bias: add a learned bias for each head and relative position of a key.
        qkv_bias: add a learned bias in the query, key and value projection.
        qk_scale: factor on the scores before the bias; None means `(dim/num_heads) ** -0.5`.
        proj_drop: probability in [0, 1) of dropping an output element while training.
        pad_small_maps: how to treat an axis shorter than `kernel_size * dilation`. False:
            the window shrinks to the pixels that exist. True: the input is zero-padded at the
            right and bottom up to that length before the projection, the padding takes part
            as keys and values (equal to the bias of `qkv`), and the output is cropped. True
            agrees with NATTEN's modules up to 0.15.1, with which the published NAT and DiNAT
            weights were trained.

    Raises:
        ArgumentError: a value outside the range above, or an input of another shape.
        ArgumentTypeError: a kernel size, dilation, stride or is_causal of another type.
    """

    rank = 2


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Multi-head self-attention of each element of a sequence to its window of kernel_size.

    Input and output are `[batch, length, dim]`, `rpb` is `[num_heads, 2*K0-1]`; everything else
    is as in `NeighborhoodAttention2D`, with one axis.
    """

    rank = 1


class NeighborhoodAttention3D(_NeighborhoodAttention):
    """Multi-head self-attention of each voxel to its window of kernel_size voxels.

    Input and output are `[batch, depth, height, width, dim]`, `rpb` is
    `[num_heads, 2*K0-1, 2*K1-1, 2*K2-1]`; everything else is as in `NeighborhoodAttention2D`, with
    three axes.
    """

    rank = 3
