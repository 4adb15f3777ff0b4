"""Where the taps of every query read, and the layouts that the reference computes in."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from natc.errors import ArgumentError
from natc.reference.validate import per_axis
from natc.window import Arithmetic, key_position, rpb_index, window


class Neighborhood(NamedTuple):
    """Where the taps of all queries read; queries and taps flattened in row-major order."""

    kernel_size: tuple[int, ...]
    positions: Tensor  # int64 [queries, taps]: flattened position, valid for every tap
    bias: Tensor  # int64 [queries, taps]: index into the flattened rpb, valid for every tap
    attended: Tensor  # bool [queries, taps]: whether the tap has a key


def neighborhood(
    spatial: Sequence[int],
    kernel_size: Any,
    dilation: Any,
    stride: Any,
    is_causal: Any,
    device: torch.device,
) -> Neighborhood:
    """Return the neighborhood of every query of a map; raises for options that are not allowed."""
    rank = len(spatial)
    sizes = per_axis("kernel_size", kernel_size, rank)
    dilations = per_axis("dilation", dilation, rank)
    strides = per_axis("stride", stride, rank)
    for one_stride, size in zip(strides, sizes, strict=True):
        if one_stride > size:
            raise ArgumentError(
                f"stride is {stride!r}; it must not exceed kernel_size, which is {kernel_size!r}."
            )
    causal = per_axis("is_causal", is_causal, rank, flag=True)

    positions = bias = torch.zeros(1, 1, dtype=torch.int64, device=device)
    attended = torch.ones(1, 1, dtype=torch.bool, device=device)
    for length, size, step, one_stride, one_causal in zip(
        spatial, sizes, dilations, strides, causal, strict=True
    ):
        query = torch.arange(length, device=device)[:, None]
        tap = torch.arange(size, device=device)[None, :]
        found = window(
            query, length, size, step, stride=one_stride, is_causal=bool(one_causal), ops=TORCH
        )
        # A tap without a key reads the last one that has: finite, in bounds, then masked.
        read = TORCH.minimum(tap, found.count - 1)
        key, offset = key_position(found, read, step), rpb_index(found, read, size)
        positions = _product(operator.add, positions * length, key)
        bias = _product(operator.add, bias * (2 * size - 1), offset)
        attended = _product(operator.and_, attended, (tap < found.count).expand(length, size))
    return Neighborhood(sizes, positions, bias, attended)


def _product(combine: Callable[[Tensor, Tensor], Tensor], outer: Tensor, inner: Tensor) -> Tensor:
    """Combine every query and tap of `outer` with every one of `inner`, both `[queries, taps]`."""
    return combine(outer[:, None, :, None], inner[None, :, None, :]).flatten(2).flatten(0, 1)


def _minimum(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return a.clamp(max=b)
    return b.clamp(max=a) if isinstance(b, Tensor) else min(a, b)


def _maximum(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return a.clamp(min=b)
    return b.clamp(min=a) if isinstance(b, Tensor) else max(a, b)


TORCH = Arithmetic(operator.floordiv, operator.mod, _minimum, _maximum)


def heads_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, *spatial, heads, channels] -> [batch, heads, positions, channels]."""
    return tensor.to(dtype).flatten(1, -3).transpose(1, 2)


def grouped(tensor: Tensor, heads_kv: int) -> Tensor:
    """[batch, *spatial, heads, n] -> [batch, heads_kv, queries, heads per kv head, n]."""
    return tensor.flatten(1, -3).unflatten(2, (heads_kv, -1)).transpose(1, 2)


def heads_last(tensor: Tensor, spatial: Sequence[int]) -> Tensor:
    """Undo `grouped`."""
    return tensor.transpose(1, 2).flatten(2, 3).unflatten(1, list(spatial))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices in their own dtype, under autocast too."""
    with without_autocast(a.device):
        return a @ b


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products keep their dtype, under autocast too."""
    # Meta and the like have no autocast, and asking for it to be off raises.
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are computed in: float32, or float64 where an input is."""
    return torch.float64 if torch.float64 in dtypes else torch.float32
