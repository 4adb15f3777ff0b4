"""The modules of 0.14 and 0.15: one kernel size and dilation, a bias by default, and padding.

A map smaller than the window is padded with zeros at its end, before the projection to query, key
and value. The padding therefore becomes keys and values that equal the projection's bias. The
published detection and segmentation networks were trained with it.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, ClassVar

from torch import Tensor, nn

from natc.compat.natten import functions_014, functions_017
from natc.compat.natten.arguments import WindowError, check_room
from natc.compat.natten.modules import Attention, of_each_rank
from natc.compat.natten.operators import is_tracing, operator


def _traced_as_014(rank: int) -> Any:
    """Return qk and av of 0.17 under the names that 0.14 gives them in a trace."""
    return tuple(
        operator(name, of_017.apply)
        for name, of_017 in zip(functions_014.operators(rank), functions_017.operators(rank))
    )


class Padded(Attention):
    """Modules that pad small maps; kernel_size and dilation are one integer for all axes."""

    kernel_size: int
    dilation: int | None
    window_size: int | None

    @staticmethod
    def _check_size(kernel_size: int) -> None:
        # An AssertionError, as in the releases.
        if kernel_size <= 1 or kernel_size % 2 == 0:
            raise AssertionError(
                f"kernel_size is {kernel_size}; it must be odd and greater than 1."
            )

    @staticmethod
    def _step(dilation: Any) -> int:
        if dilation is not None and dilation < 1:
            raise AssertionError(f"dilation is {dilation}; it must be >= 1.")
        return dilation or 1

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, *S, dim]` for x of that shape."""
        self._check_rank(x)
        dilation = self.dilation
        if dilation is None:
            dilation = max(min(x.shape[1:-1]) // self.kernel_size, 1)
        return self._run(x, (self.kernel_size,) * self.rank, (dilation,) * self.rank, self.rank)

    def _run(
        self, x: Tensor, sizes: tuple[int, ...], dilations: tuple[int, ...], padded_axes: int
    ) -> Tensor:
        """Pad the last axes, attend, crop, project."""
        spatial = x.shape[1:-1]
        needed = [size * step for size, step in zip(sizes, dilations)]
        missing = [max(0, want - have) for want, have in zip(needed, spatial)]
        missing[: self.rank - padded_axes] = [0] * (self.rank - padded_axes)
        if any(missing):
            padding = [entry for amount in reversed(missing) for entry in (0, amount)]
            x = nn.functional.pad(x, (0, 0, *padding))
        check_room(sizes, dilations, x.shape[1:-1], WindowError)
        # As in the release, a trace shows the module as qk and av.
        if self._drops() or is_tracing():
            x = self._attend_unfused(x, sizes, dilations)
        else:
            x = self._attend(x, sizes, dilation=dilations, rpb=self.rpb)
        if any(missing):
            for axis, length in enumerate(spatial, start=1):
                x = x.narrow(axis, 0, length)
        return self.proj_drop(self.proj(x))


class Module014(Padded):
    """0.14.5 to 0.15.1."""

    shown = ("kernel_size", "dilation")
    word_of_bias = "rel_pos_bias"
    # Whether a string as dilation, whatever it says, means the largest that the map allows.
    takes_strings: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilation: int | str | None = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self._check_size(kernel_size)
        self.kernel_size = kernel_size
        if isinstance(dilation, str) and self.takes_strings:
            self.dilation = self.window_size = None
        else:
            step = self._step(dilation)
            self.dilation, self.window_size = step, kernel_size * step
        bias_of = (kernel_size,) * self.rank if bias else None
        self._create(dim, num_heads, qk_scale, bias_of, qkv_bias, attn_drop, proj_drop)


class _Before0145(Module014):
    """Up to 0.14.4: kernel_size before num_heads, always a bias."""

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        dilation: int | str | None = None,
    ) -> None:
        super().__init__(
            dim, num_heads, kernel_size, dilation, True, qkv_bias, qk_scale, attn_drop, proj_drop
        )


class UpTo0144:
    """The modules of releases up to 0.14.4."""

    class NeighborhoodAttention1D(_Before0145):
        """Of sequences `[B, length, dim]`."""

        rank = 1
        operators = _traced_as_014(1)

    class NeighborhoodAttention2D(_Before0145):
        """Of maps `[B, height, width, dim]`; a string as dilation: the largest that fits."""

        rank = 2
        takes_strings = True
        operators = _traced_as_014(2)

    class NeighborhoodAttention(NeighborhoodAttention2D):
        """The same under an older name."""

        @functools.wraps(_Before0145.__init__)  # type: ignore[misc]
        def __init__(self, *values: Any, **by: Any) -> None:
            super().__init__(*values, **by)
            warnings.warn(
                "NeighborhoodAttention is NeighborhoodAttention2D, and gone after NATTEN 0.14.4.",
                DeprecationWarning,
                stacklevel=2,
            )


# The modules of 0.14.5 and 0.14.6.
UpTo0146 = of_each_rank(__name__, "UpTo0146", [Module014] * 2, _traced_as_014)
