"""Fused attention on checked arguments: on a kernel where one covers the call, or the reference.

Layouts are heads-last, as in `natc.operations`; rpb and lse are in the accumulator's dtype. Every
function raises LibraryError, NotCoveredError and ArgumentError as `natc.na2d` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from natc import reference
from natc.dispatch.fallback import as_new, find, reference_is_forced, report
from natc.dispatch.launch import launch, scalars
from natc.reference.layout import accumulator, within, without_autocast
from natc.runtime import registry


def forward(*call: Any) -> Tensor:
    """Return the attention output; arguments as `run` after operation."""
    return run("forward", *call)[0]


def forward_lse(*call: Any) -> tuple[Tensor, ...]:
    """Return the attention output and the logsumexp; arguments as `run` after operation."""
    return run("forward_lse", *call)


def run(
    operation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, ...]:
    """Return (output,), and for `forward_lse` (output, lse), new and compact.

    Arguments and results as for `natc.na2d`, one option per axis.
    """
    shape = query.shape
    value_dim = value.shape[-1]
    # `empty_like` is the faster one.
    if value_dim == shape[-1]:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
    else:
        output = query.new_empty((*shape[:-1], value_dim))
    results = (output, empty_lse(query)) if operation == "forward_lse" else (output,)
    if query.numel() == 0:
        return results
    kind = (
        operation, tuple(kernel_size), shape[-1], query.dtype, rpb is not None, value_dim,
        query.device,
    )  # fmt: skip
    # What `find` does, without a call.
    kernel = None if reference_is_forced() else registry.resolved[kind]
    if kernel is None:
        report(*kind)
        options = (kernel_size, dilation, stride, is_causal, scale)
        found = composed(query, key, value, rpb, *options)
        return tuple(as_new(result) for result in found[: len(results)])
    inputs = (query, key, value) if rpb is None else (query, key, value, rpb)
    tail = scalars(scale, shape[1:-2], dilation, stride, is_causal)
    launch(kernel, operation, inputs, results, tail, shape[-2] // key.shape[-2])
    return results


def forward_packed(*call: Any) -> Tensor:
    """Return the attention output; arguments as `run_packed` after operation."""
    return run_packed("forward", *call)[0]


def forward_lse_packed(*call: Any) -> tuple[Tensor, ...]:
    """Return the attention output and the logsumexp; arguments as `run_packed`."""
    return run_packed("forward_lse", *call)


def run_packed(
    operation: str,
    qkv: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, ...]:
    """Return what `run` does of query, key and value in one tensor, read as they lie there.

    qkv: `[B, *S, 3, heads, head_dim]`. Where no kernel reads that, they are taken apart.
    """
    *leading, _, heads, dim = qkv.shape
    options = (kernel_size, dilation, stride, is_causal, scale)
    kernel = None
    if qkv.numel() > 0:
        packed = f"{operation}_packed"
        kernel = find(packed, kernel_size, dim, qkv.dtype, rpb is not None, dim, qkv.device)
    if kernel is None:
        query, key, value = qkv.unbind(-3)
        return run(operation, query, key, value, rpb, *options)
    output = qkv.new_empty((*leading, heads, dim))
    results = (output, empty_lse(output)) if operation == "forward_lse" else (output,)
    tail = scalars(scale, leading[1:], dilation, stride, is_causal)
    launch(kernel, packed, (qkv,) if rpb is None else (qkv, rpb), results, tail, 1)
    return results


def empty_lse(query: Tensor) -> Tensor:
    """Return an uninitialised logsumexp for a query: float32, or float64 for a float64 query."""
    return query.new_empty(query.shape[:-1], dtype=accumulator(query.dtype))


def composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return (output, lse) by the reference: differentiable in either mode, to any order."""
    if query.numel() == 0:
        return query.new_empty((*query.shape[:-1], value.shape[-1])), empty_lse(query)
    sizes, dilations, strides = within(query.shape[1:-2], kernel_size, dilation, stride, rpb=rpb)
    # Autocast would run the reference's products in 16 bits, in which it does not accumulate.
    with without_autocast(query.device):
        output, lse = reference.neighborhood_attention(
            query,
            key,
            value,
            sizes,
            dilation=dilations,
            stride=strides,
            is_causal=list(is_causal),
            scale=scale,
            rpb=rpb,
            return_lse=True,
        )
    return output.contiguous(), lse.contiguous()
