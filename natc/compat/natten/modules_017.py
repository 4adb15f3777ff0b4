"""The modules of 0.17: options per axis, causal axes, no bias by default, no padding."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from natc.compat.natten.arguments import check_bias, check_window, options_017
from natc.compat.natten.context import SETTINGS
from natc.compat.natten.functions_017 import operators
from natc.compat.natten.modules import Attention, of_each_rank
from natc.compat.natten.operators import is_tracing, variant

_PerAxis = Any


class Module017(Attention):
    """0.17.4 and 0.17.5."""

    shown = ("kernel_size", "dilation", "is_causal")
    takes_even: ClassVar[bool] = False
    stride: Sequence[int] | int = 1

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
        self.kernel_size, self.dilation, self.is_causal = options_017(
            self.rank, kernel_size, dilation, is_causal
        )
        if rel_pos_bias and any(self.is_causal):
            check_bias(self.is_causal, torch.empty(0))
        self.attn_drop_rate = attn_drop
        self.use_experimental_ops = use_experimental_ops
        bias_of = self.kernel_size if rel_pos_bias else None
        self._create(dim, num_heads, qk_scale, bias_of, qkv_bias, attn_drop, proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, *S, dim]` for x of that shape.

        As in the release, attention weights are not dropped out while fused attention is switched
        on by `natten.use_fused_na`.
        """
        self._check_rank(x)
        where = self.kernel_size, self.dilation
        if self.use_experimental_ops and not SETTINGS.fused:
            raise NotImplementedError(
                "use_experimental_ops is True, but fused attention is off; call "
                "natten.use_fused_na() first."
            )
        # As in the release, a trace shows the module as qk and av, or as the fused operator.
        if not SETTINGS.fused and (self._drops() or is_tracing()):
            x = self._attend_unfused(x, *where, self.is_causal)
        elif is_tracing():
            split = self._packed(x).unbind(-3)
            options = *where, self.is_causal, self.scale, None, None
            x = self.operators[2].apply(*split, self.rpb, *options)[0].flatten(-2)
        else:
            self._check_window(x.shape[1:-1])
            x = self._attend(
                x,
                self.kernel_size,
                stride=self.stride,
                dilation=self.dilation,
                is_causal=self.is_causal,
                rpb=self.rpb,
            )
        return self.proj_drop(self.proj(x))

    def _check_window(self, spatial: Sequence[int]) -> None:
        even = self.takes_even and SETTINGS.fused and self.rpb is None
        check_window(self.kernel_size, self.dilation, spatial, even=even)


class _TakesEven(Module017):
    takes_even = True


class _UpTo0173(Module017):
    __init__ = variant(Module017.__init__, fixed={"use_experimental_ops": False})


# The modules of 0.17.0 to 0.17.3, of 0.17.4, and of 0.17.5, which takes even kernel sizes.
UpTo0173 = of_each_rank(__name__, "UpTo0173", [_UpTo0173] * 3, operators)
Of0174 = of_each_rank(__name__, "Of0174", [Module017] * 3, operators)
Of0175 = of_each_rank(
    __name__, "Of0175", [_TakesEven] * 3, functools.partial(operators, even=True)
)
