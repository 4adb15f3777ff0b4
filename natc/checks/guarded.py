"""Calling a compiled function itself, with guards around everything that it reads or writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from natc.checks.inputs import Inputs, poisoned
from natc.dispatch.call import Options
from natc.errors import CheckError
from natc.operations import OPERATIONS

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


def check_guards(tensor: Tensor, name: str) -> None:
    """Raise CheckError if something wrote beside a tensor made by `guarded`."""
    buffer, start = tensor._base, tensor.storage_offset()
    if buffer is None:
        raise CheckError(f"{name} is not guarded")
    if not buffer[:start].isnan().all():
        raise CheckError(f"{name}: written before its first element")
    if not buffer[start + tensor.numel() :].isnan().all():
        raise CheckError(f"{name}: written after its last element")


def call_guarded(
    function: Callable[..., Any],
    operation: str,
    inputs: Sequence[Tensor | None],
    shapes: Sequence[tuple[Sequence[int], torch.dtype]],
    scalars: Sequence[Any],
) -> list[Tensor]:
    """Return the results of one call of an operation's function on guarded copies.

    inputs: in the function's order, None for an input that the function does not take; if one is
    empty, the function is not called. shapes: (shape, dtype) of each result; results are NaN
    before the call. Raises CheckError if the function wrote beside a result or changed an input.
    """
    originals = [tensor for tensor in inputs if tensor is not None]
    copies = [guarded(tensor) for tensor in originals]
    device = originals[0].device
    results = [guarded(poisoned(shape, dtype, device)) for shape, dtype in shapes]
    if all(tensor.numel() for tensor in copies):
        function(*copies, *results, *scalars)
    entry = OPERATIONS[operation]
    names = entry.results_of(rpb=len(results) == len(entry.results))
    for result, name in zip(results, names, strict=True):
        check_guards(result, f"{name} of {operation}")
    for copy, original in zip(copies, originals, strict=True):
        check_guards(copy, f"an input of {operation}")
        if not _same_bits(copy, original):
            raise CheckError(f"{operation} changed an input")
    return results


def scalars(
    inputs: Inputs,
    scale: float,
    dilation: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    is_causal: Sequence[bool] | None = None,
    **terms: Any,
) -> tuple[Any, ...]:
    """Return the scalars of a call of a heads-last function (`natc.operations.SCALARS`).

    terms: the numbers of those of `natc.spec.TERMS` that the function computes.
    """
    sizes = inputs.query.shape[1:-2]
    unit, flags = (1,) * len(sizes), (False,) * len(sizes)
    options = Options(
        kernel_size=(),  # A compiled function knows its own.
        stride=tuple(stride or unit),
        dilation=tuple(dilation or unit),
        is_causal=tuple(is_causal or flags),
        scale=scale,
        **terms,
    )
    return (*options.scalars(sizes), inputs.query.shape[-2] // inputs.key.shape[-2])


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.detach().contiguous().view(torch.uint8))
