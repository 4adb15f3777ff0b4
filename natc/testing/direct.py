"""Calling a compiled function itself, with guards around everything that it reads or writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from natc.reference import neighborhood_attention
from natc.testing.inputs import Inputs, poisoned
from natc.testing.tolerance import RELATIVE_TOLERANCE, assert_close_to_float64

_MARGIN = 4096  # bytes on each side
_ALIGNMENT = 64


def guarded(tensor: Tensor) -> Tensor:
    """Return the same values, contiguous and aligned, between two margins of NaN."""
    margin = (_MARGIN + _ALIGNMENT) // tensor.element_size()
    buffer = poisoned((tensor.numel() + 2 * margin,), tensor.dtype, tensor.device)
    to_aligned = -(buffer.data_ptr() + _MARGIN) % _ALIGNMENT
    start = (_MARGIN + to_aligned) // tensor.element_size()
    view = buffer[start : start + tensor.numel()].view(tensor.shape)
    view.copy_(tensor.detach())
    return view


def assert_guards_hold(tensor: Tensor, name: str) -> None:
    """Raise AssertionError when something wrote beside a tensor made by `guarded`."""
    buffer, start = tensor._base, tensor.storage_offset()
    assert buffer is not None, f"{name} is not guarded"
    before, after = buffer[:start], buffer[start + tensor.numel() :]
    assert bool(before.isnan().all()), f"{name}: written before its first element"
    assert bool(after.isnan().all()), f"{name}: written after its last element"


def call(
    function: Callable[..., Any],
    inputs: Inputs,
    *,
    scale: float,
    dilation: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    is_causal: Sequence[bool] | None = None,
    with_lse: bool = False,
) -> tuple[Tensor, ...]:
    """Return (output,) or (output, lse) of one call of a kernel's function on guarded copies.

    dilation, stride, is_causal: one for each axis; None means 1, 1 and False. Raises
    AssertionError when it wrote beside its results or into its inputs.
    """
    given = [guarded(tensor) for tensor in inputs if tensor is not None]
    query, value = inputs.query, inputs.value
    leading = query.shape[:-1]
    results = [guarded(poisoned((*leading, value.shape[-1]), query.dtype, query.device))]
    if with_lse:
        accumulator = torch.promote_types(query.dtype, torch.float32)
        results.append(guarded(poisoned(leading, accumulator, query.device)))
    function(*given, *results, *scalars(inputs, scale, dilation, stride, is_causal))
    for result, name in zip(results, ("output", "lse")):
        assert_guards_hold(result, name)
    for tensor, original in zip(given, (t for t in inputs if t is not None)):
        assert_guards_hold(tensor, "input")
        assert _same_bits(tensor, original), "the kernel changed an input"
    return tuple(results)


def scalars(
    inputs: Inputs,
    scale: float,
    dilation: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    is_causal: Sequence[bool] | None = None,
) -> tuple[float | int, ...]:
    """Return the scalars of a call of a heads-last function (`natc.operations.SCALARS`)."""
    sizes = inputs.query.shape[1:-2]
    ones, flags = [1] * len(sizes), [False] * len(sizes)
    clamped = (min(step, size) for step, size in zip(dilation or ones, sizes, strict=True))
    group = inputs.query.shape[-2] // inputs.key.shape[-2]
    return (scale, *clamped, *(stride or ones), *map(int, is_causal or flags), group)


def assert_right(
    results: Sequence[Tensor],
    inputs: Inputs,
    kernel_size: Sequence[int],
    *,
    scale: float,
    dilation: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    is_causal: Sequence[bool] | None = None,
) -> None:
    """Raise AssertionError unless (output,) or (output, lse) is that of a float64 reference.

    The reference computes from the same rounded inputs, on the CPU.
    """
    exact = inputs.to_float64()
    query, key, value = (tensor.cpu() for tensor in exact[:3])
    output, lse = neighborhood_attention(
        query,
        key,
        value,
        tuple(kernel_size),
        dilation=tuple(dilation) if dilation else 1,
        stride=tuple(stride) if stride else 1,
        is_causal=tuple(is_causal) if is_causal else False,
        scale=scale,
        rpb=None if exact.rpb is None else exact.rpb.cpu(),
        return_lse=True,
    )
    assert_close_to_float64(results[0], output, inputs.query.dtype, "output")
    for found in results[1:]:
        assert (
            found.dtype == torch.promote_types(inputs.query.dtype, torch.float32)
            and found.shape == lse.shape
        )
        # A logarithm may be near zero, where its error is not relative. It is never rounded to
        # the inputs' dtype.
        error = (found.cpu().double() - lse).abs().max().item()
        limit = RELATIVE_TOLERANCE[torch.float32] * max(lse.abs().max().item(), 1.0)
        assert error <= limit, f"lse: largest error {error:.3g} (limit {limit:.3g})"


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.detach().contiguous().view(torch.uint8))
