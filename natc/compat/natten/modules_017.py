"""The modules of 0.17: options per axis, causal axes, no bias by default, no padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from natc.compat.natten.arguments import check_bias, check_window, flags, sizes
from natc.compat.natten.context import SETTINGS
from natc.compat.natten.functions_017 import operators
from natc.compat.natten.modules import Attention
from natc.compat.natten.operators import is_tracing

_PerAxis = Any


class _Module(Attention):
    def _configure(
        self,
        dim: int,
        num_heads: int,
        kernel_size: _PerAxis,
        dilation: _PerAxis,
        is_causal: _PerAxis,
        rel_pos_bias: bool,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        proj_drop: float,
        use_experimental_ops: bool = False,
    ) -> None:
        self.kernel_size = sizes("kernel_size", kernel_size, self.rank)
        self.dilation = sizes("dilation", dilation, self.rank)
        self.is_causal = flags(is_causal, self.rank)
        if rel_pos_bias and any(self.is_causal):
            check_bias(self.is_causal, torch.empty(0))
        self._heads(dim, num_heads, qk_scale)
        self.attn_drop_rate = attn_drop
        self.use_experimental_ops = use_experimental_ops
        bias_of = self.kernel_size if rel_pos_bias else None
        self._projections(dim, bias_of, qkv_bias, attn_drop, proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, *S, dim]` for x of that shape.

        While fused attention is switched on (`natten.use_fused_na`), attention weights are not
        dropped out, as in the release.
        """
        self._check_rank(x)
        where = self.kernel_size, self.dilation
        if self.use_experimental_ops and not SETTINGS.fused:
            raise NotImplementedError(
                "use_experimental_ops is True; only fused attention has these. Call "
                "natten.use_fused_na() first."
            )
        # As the release's own, a traced module consists of qk and av, unless it is fused.
        if not SETTINGS.fused and (self._drops() or is_tracing()):
            x = self._attend_unfused(x, *where, self.is_causal)
        elif is_tracing():
            split = self._packed(x).unbind(-3)
            options = *where, self.is_causal, self.scale, None, None
            x = operators(self.rank)[2].apply(*split, self.rpb, *options)[0].flatten(-2)
        else:
            check_window(*where, x.shape[1:-1])
            options_by_name = {"dilation": self.dilation, "is_causal": self.is_causal}
            x = self._attend(x, self.kernel_size, rpb=self.rpb, **options_by_name)
        return self.proj_drop(self.proj(x))

    def extra_repr(self) -> str:
        """Return the settings that `print(module)` shows."""
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, "
            f"kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, has_bias={self.rpb is not None}"
        )


class _Early(_Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: _PerAxis,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self._configure(
            dim, num_heads, kernel_size, dilation, is_causal, rel_pos_bias, qkv_bias, qk_scale,
            attn_drop, proj_drop,
        )  # fmt: skip


class _Late(_Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: _PerAxis,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
    ) -> None:
        super().__init__()
        self._configure(
            dim, num_heads, kernel_size, dilation, is_causal, rel_pos_bias, qkv_bias, qk_scale,
            attn_drop, proj_drop, use_experimental_ops,
        )  # fmt: skip


class _Union(_Module):
    """As `_Late`; `bias`, which 0.14 and 0.15 had for `rel_pos_bias`, is taken by name."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: _PerAxis,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
        *,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self._configure(
            dim, num_heads, kernel_size, dilation, is_causal,
            rel_pos_bias if bias is None else bias, qkv_bias, qk_scale, attn_drop, proj_drop,
            use_experimental_ops,
        )  # fmt: skip


class UpTo0173:
    """The modules of 0.17.0 to 0.17.3."""

    class NeighborhoodAttention1D(_Early):
        """Of sequences `[B, length, dim]`."""

        rank, operators = 1, operators(1)[:2]

    class NeighborhoodAttention2D(_Early):
        """Of maps `[B, height, width, dim]`."""

        rank, operators = 2, operators(2)[:2]

    class NeighborhoodAttention3D(_Early):
        """Of volumes `[B, depth, height, width, dim]`."""

        rank, operators = 3, operators(3)[:2]


class UpTo0175:
    """The modules of 0.17.4 and 0.17.5."""

    class NeighborhoodAttention1D(_Late):
        """Of sequences `[B, length, dim]`."""

        rank, operators = 1, operators(1)[:2]

    class NeighborhoodAttention2D(_Late):
        """Of maps `[B, height, width, dim]`."""

        rank, operators = 2, operators(2)[:2]

    class NeighborhoodAttention3D(_Late):
        """Of volumes `[B, depth, height, width, dim]`."""

        rank, operators = 3, operators(3)[:2]


class Union:
    """The modules of 0.17.4 with the argument `bias`."""

    class NeighborhoodAttention1D(_Union):
        """Of sequences `[B, length, dim]`."""

        rank, operators = 1, operators(1)[:2]

    class NeighborhoodAttention2D(_Union):
        """Of maps `[B, height, width, dim]`."""

        rank, operators = 2, operators(2)[:2]

    class NeighborhoodAttention3D(_Union):
        """Of volumes `[B, depth, height, width, dim]`."""

        rank, operators = 3, operators(3)[:2]
