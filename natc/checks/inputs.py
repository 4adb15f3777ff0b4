"""Inputs of neighborhood attention: the same values on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from natc.spec import KernelSpec


class Inputs(NamedTuple):
    """The tensors of one call, heads-last; rpb is None if the kernel has no bias."""

    query: Tensor  # [batch, *spatial, heads, head_dim]
    key: Tensor  # [batch, *spatial, heads_kv, head_dim]
    value: Tensor  # [batch, *spatial, heads_kv, value_dim]
    rpb: Tensor | None  # [heads, 2*K-1 of each axis], float32

    def to_float64(self) -> Inputs:
        """Return the same values in float64, detached, for an oracle."""
        query, key, value = (tensor.detach().double() for tensor in self[:3])
        return Inputs(query, key, value, None if self.rpb is None else self.rpb.detach().double())


def make_inputs(
    shape: Sequence[int],
    *,
    kernel_size: int | Sequence[int] | None = None,
    heads_kv: int | None = None,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    requires_grad: bool = False,
) -> Inputs:
    """Return normally distributed inputs; a seed gives the same values on every device.

    shape: of the query, `[batch, *spatial, heads, head_dim]`. kernel_size: makes an rpb for it, in
    float32 whatever the dtype. heads_kv, value_dim: by default, the query's heads and head_dim.
    """
    *leading, heads, head_dim = shape
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        values = torch.randn(size, generator=generator).to(dtype).to(device)
        return values.requires_grad_(requires_grad)

    heads_kv = heads if heads_kv is None else heads_kv
    query = draw(*leading, heads, head_dim)
    key = draw(*leading, heads_kv, head_dim)
    value = draw(*leading, heads_kv, head_dim if value_dim is None else value_dim)
    rpb = None
    if kernel_size is not None:
        rank = len(leading) - 1
        sizes = (kernel_size,) * rank if isinstance(kernel_size, int) else kernel_size
        rpb = draw(heads, *(2 * size - 1 for size in sizes), dtype=torch.float32)
    return Inputs(query, key, value, rpb)


def inputs_of(spec: KernelSpec, leading: Sequence[int], **options: Any) -> Inputs:
    """Return inputs of a kernel.

    leading: batch, map and heads of the query; options: as for `make_inputs`.
    """
    return make_inputs(
        (*leading, spec.head_dim),
        kernel_size=spec.kernel_size if spec.rpb else None,
        value_dim=spec.value_dim,
        dtype=getattr(torch, spec.dtype),
        **options,
    )


def poisoned(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return a tensor of NaN: elements that a kernel skips, or wrongly reads, stay visible."""
    return torch.full(tuple(shape), math.nan, dtype=dtype, device=device)
