"""The modules of 0.15: as in 0.14.6, and one for volumes, whose depth has its own window.

The depth is not padded: a volume that is less deep than the window is refused, as in the release.
"""

from __future__ import annotations

from torch import Tensor

from natc.compat.natten import functions_017
from natc.compat.natten.modules import of_each_rank
from natc.compat.natten.modules_014 import Module014, Padded


class _OfVolumes(Padded):
    shown = ("kernel_size_d", "dilation_d", "kernel_size", "dilation")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        kernel_size_d: int | None = None,
        dilation: int = 1,
        dilation_d: int | None = None,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self._check_size(kernel_size)
        self.kernel_size = kernel_size
        self.kernel_size_d = kernel_size_d or kernel_size
        self.dilation: int = self._step(dilation)
        self.dilation_d = self._step(dilation_d or self.dilation)
        self.window_size = self.kernel_size * self.dilation
        self.window_size_d = self.kernel_size_d * self.dilation_d
        bias_of = (self.kernel_size_d, kernel_size, kernel_size) if bias else None
        self._create(dim, num_heads, qk_scale, bias_of, qkv_bias, attn_drop, proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, depth, height, width, dim]` for x of that shape."""
        self._check_rank(x)
        sizes = self.kernel_size_d, self.kernel_size, self.kernel_size
        return self._run(x, sizes, (self.dilation_d, self.dilation, self.dilation), 2)


UpTo0151 = of_each_rank(
    __name__,
    "UpTo0151",
    [Module014, Module014, _OfVolumes],
    lambda rank: functions_017.operators(rank)[:2],
)
