"""The positions that every query's taps read, and the layouts in which the reference computes."""

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
    """The key of each tap of each query; queries and taps are flattened in row-major order."""

    kernel_size: tuple[int, ...]
    positions: Tensor  # int64 [queries, taps]: flattened position, valid for every tap
    bias: Tensor  # int64 [queries, taps]: index into the flattened rpb, valid for every tap
    attended: Tensor  # bool [queries, taps]: whether the tap has a key


def neighborhood(
    spatial: Sequence[int],
    device: torch.device,
    kernel_size: Any,
    *,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
) -> Neighborhood:
    """Return the neighborhood of every query of a map of size `spatial`; checks the options."""
    rank = len(spatial)
    sizes = per_axis("kernel_size", kernel_size, rank)
    strides = per_axis("stride", stride, rank)
    dilations = per_axis("dilation", dilation, rank)
    for step, size in zip(strides, sizes, strict=True):
        if step > size:
            raise ArgumentError(
                f"stride is {stride!r}; it must not exceed kernel_size, which is {kernel_size!r}."
            )
    causal = per_axis("is_causal", is_causal, rank, flag=True)

    positions = bias = torch.zeros(1, 1, dtype=torch.int64, device=device)
    attended = torch.ones(1, 1, dtype=torch.bool, device=device)
    axes = zip(spatial, sizes, strides, dilations, map(bool, causal), strict=True)
    for length, size, step, distance, flag in axes:
        query = torch.arange(length, device=device)[:, None]
        tap = torch.arange(size, device=device)[None, :]
        axis = window(query, length, size, distance, stride=step, is_causal=flag, ops=TORCH)
        # A tap without a key reads the window's last key, which is in bounds, and is masked later.
        read = TORCH.minimum(tap, axis.count - 1)
        key, offset = key_position(axis, read, distance), rpb_index(axis, read, size)
        positions = _product(operator.add, positions * length, key)
        bias = _product(operator.add, bias * (2 * size - 1), offset)
        attended = _product(operator.and_, attended, (tap < axis.count).expand(length, size))
    return Neighborhood(sizes, positions, bias, attended)


def _product(combine: Callable[[Tensor, Tensor], Tensor], outer: Tensor, inner: Tensor) -> Tensor:
    """Return `combine` of each entry of outer with each of inner, both `[queries, taps]`."""
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
    """Return `[batch, *spatial, heads, channels]` as `[batch, heads, positions, channels]`."""
    return tensor.to(dtype).flatten(1, -3).transpose(1, 2)


def grouped(tensor: Tensor, heads_kv: int) -> Tensor:
    """Return `[batch, *spatial, heads, n]` as `[batch, heads_kv, queries, group, n]`."""
    return tensor.flatten(1, -3).unflatten(2, (heads_kv, -1)).transpose(1, 2)


def heads_last(tensor: Tensor, spatial: Sequence[int]) -> Tensor:
    """Return a tensor in the layout of `grouped` as `[batch, *spatial, heads, n]`."""
    return tensor.transpose(1, 2).flatten(2, 3).unflatten(1, list(spatial))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in the dtype of a and b, also under autocast."""
    with without_autocast(a.device):
        return a @ b


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocast is off on a device."""
    # Devices such as meta have no autocast, and switching it off raises.
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums are computed: float64 if dtypes has it, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32
