"""The base class of the modules of every release: projections around natc's attention.

Parameters are created in the order of the releases, so that a seed gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from natc import functional
from natc.compat.natten.operators import Operator
from natc.errors import ArgumentError

_ATTENTION = {
    1: functional.na1d_qkvpacked,
    2: functional.na2d_qkvpacked,
    3: functional.na3d_qkvpacked,
}


class Attention(nn.Module):
    """Attention between projections. Subclasses have the arguments of a release."""

    rank: ClassVar[int]
    # qk and av, then the fused one if there is one. They have the names that the release gives
    # them in a trace, and the arguments of 0.17.
    operators: ClassVar[tuple[type[Operator], ...]]
    # The settings that `print(module)` shows, and its word for `rpb`, if the release has one.
    shown: ClassVar[tuple[str, ...]]
    word_of_bias: ClassVar[str | None] = "has_bias"

    rpb: nn.Parameter | None

    def _create(
        self,
        dim: int,
        num_heads: int,
        qk_scale: float | None,
        bias_of: Sequence[int] | None,
        qkv_bias: bool,
        attn_drop: float | None,
        proj_drop: float,
    ) -> None:
        """Create the parameters, and the settings of the heads.

        bias_of: the kernel sizes that the bias covers; None for no bias. attn_drop: None if the
        release has no dropout of attention weights.
        """
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        if bias_of is not None:
            offsets = [2 * size - 1 for size in bias_of]
            self.rpb = nn.Parameter(torch.zeros(self.num_heads, *offsets))
            nn.init.trunc_normal_(self.rpb, std=0.02, mean=0.0, a=-2.0, b=2.0)
        elif attn_drop is not None:
            self.register_parameter("rpb", None)
        if attn_drop is not None:
            self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        """Return the settings that `print(module)` shows."""
        settings = {name: getattr(self, name) for name in ("head_dim", "num_heads", *self.shown)}
        if self.word_of_bias is not None:
            settings[self.word_of_bias] = self.rpb is not None
        return ", ".join(f"{name}={value}" for name, value in settings.items())

    def _check_rank(self, x: Tensor) -> None:
        if x.ndim != self.rank + 2:
            raise ArgumentError(
                f"x has shape {list(x.shape)}; it must have {self.rank + 2} axes: a batch, "
                f"{self.rank} spatial ones and channels."
            )

    def _packed(self, x: Tensor) -> Tensor:
        """Return query, key and value `[B, *S, 3, heads, head_dim]` of x `[B, *S, dim]`."""
        return self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))

    def _drops(self) -> bool:
        return self.training and getattr(self.attn_drop, "p", 0.0) > 0.0

    def _attend(self, x: Tensor, kernel_size: Sequence[int], **options: Any) -> Tensor:
        """Return attention of x `[B, *S, dim]` to itself, same shape, in one kernel."""
        attend = _ATTENTION[self.rank]
        return attend(self._packed(x), kernel_size, scale=self.scale, **options).flatten(-2)

    def _attend_unfused(
        self, x: Tensor, kernel_size: Sequence[int], dilation: Any, is_causal: Any = False
    ) -> Tensor:
        """Return the same in separate steps, with attention weights for dropout to act on."""
        qk_class, av_class, *_ = self.operators
        query, key, value = (each.movedim(-2, 1) for each in self._packed(x).unbind(-3))
        where = kernel_size, dilation, is_causal
        attn = qk_class.apply(query * self.scale, key, self.rpb, None, *where)
        attn = self.attn_drop(attn.softmax(dim=-1))
        output = av_class.apply(attn, value, None, *where)
        return output.movedim(1, -2).flatten(-2)


_INPUTS = {
    1: "sequences `[B, length, dim]`",
    2: "maps `[B, height, width, dim]`",
    3: "volumes `[B, depth, height, width, dim]`",
}


def of_each_rank(
    module: str,
    holder: str,
    bases: Sequence[type[Attention]],
    operators: Callable[[int], tuple[type[Operator], ...]] = lambda rank: (),
) -> type:
    """Return a class that holds NeighborhoodAttention1D and its likes, derived from `bases`.

    It must be assigned to the name `holder` in `module`, where pickle searches.
    """
    modules = {}
    for rank, base in enumerate(bases, start=1):
        name = f"NeighborhoodAttention{rank}D"
        body = {
            "__doc__": f"Neighborhood attention of {_INPUTS[rank]}.",
            "__module__": module,
            "__qualname__": f"{holder}.{name}",
            "rank": rank,
            "operators": operators(rank),
        }
        modules[name] = type(name, (base,), body)
    return type(holder, (), {"__module__": module, **modules})
