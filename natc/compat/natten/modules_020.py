"""The modules of 0.20 and 0.21: with strides, without a bias or dropout of attention weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from natc.compat.natten.arguments import check_room, options_020
from natc.compat.natten.modules import Attention, of_each_rank
from natc.compat.natten.operators import variant
from natc.errors import ArgumentError

_PerAxis = Any


class Module020(Attention):
    """0.20.1 to 0.21.7."""

    shown = ("kernel_size", "stride", "dilation", "is_causal")
    word_of_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: _PerAxis,
        stride: _PerAxis = 1,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation, self.is_causal = options_020(
            self.rank, kernel_size, stride, dilation, is_causal
        )
        if embed_dim % num_heads:
            raise ArgumentError(
                f"embed_dim is {embed_dim}; it must be a multiple of num_heads, {num_heads}."
            )
        self.na_dim = self.rank
        self.embed_dim = embed_dim
        self._create(embed_dim, num_heads, qk_scale, None, qkv_bias, None, proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, *S, embed_dim]` for x of that shape."""
        if x.ndim != self.rank + 2 or x.shape[-1] != self.embed_dim:
            raise ArgumentError(
                f"x has shape {list(x.shape)}; it must have a batch, {self.rank} spatial axes "
                f"and {self.embed_dim} channels."
            )
        check_room(self.kernel_size, self.dilation, x.shape[1:-1], ArgumentError)
        x = self._attend(
            x,
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            is_causal=self.is_causal,
        )
        return self.proj_drop(self.proj(x))


class _Dim(Module020):
    __init__ = variant(Module020.__init__, renamed={"embed_dim": "dim"})


# The modules of 0.20.0, whose first argument is `dim`, and of later releases.
Of0200 = of_each_rank(__name__, "Of0200", [_Dim] * 3)
Since0201 = of_each_rank(__name__, "Since0201", [Module020] * 3)
