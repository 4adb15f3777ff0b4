"""The unfused operations on checked arguments: on kernels, or on the reference.

Layouts are heads-first, as in `natc.operations`. The operations are linear in each tensor and
closed under differentiation: the gradient of each is made of the others (see `natc.ops.unfused`).
Every function raises LibraryError, NotCoveredError and ArgumentError as `natc.na2d` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from natc import reference
from natc.dispatch.fallback import as_new, find, report
from natc.dispatch.fused_backward import chunks
from natc.dispatch.launch import launch, scalars
from natc.reference.layout import accumulator, without_autocast
from natc.runtime.load import Kernel


def qk(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    fill: float,
) -> Tensor:
    """Return query key^T + rpb for each tap, `[B, heads, *S, taps]` in the dtype of query.

    query: `[B, heads, *S, head_dim]`. key: `[B, heads_kv, *S, head_dim]`. rpb: `[heads, 2*K0-1,
    ...]` in the accumulator's dtype. fill: what a tap without a key gets.
    """
    attn = query.new_empty((*query.shape[:-1], math.prod(kernel_size)))
    if attn.numel() == 0:
        return attn
    dim, dtype = query.shape[-1], query.dtype
    kernel, bias = _find_qk(query, rpb, kernel_size)
    if kernel is None:
        report("qk", kernel_size, dim, dtype, rpb is not None, dim, query.device)
        where = _where(dilation, stride, is_causal)
        # Autocast would run the reference's products in 16 bits, in which it does not accumulate.
        with without_autocast(query.device):
            logits = reference.neighborhood_logits(
                _last(query), _last(key), list(kernel_size), scale=1.0, rpb=rpb, fill=fill, **where
            )
        return _first(logits.to(dtype))
    inputs = (query, key) if bias is None else (query, key, bias)
    tail = scalars(1.0, query.shape[2:-1], dilation, stride, is_causal)
    launch(kernel, "qk", inputs, (attn,), tail, query.shape[1] // key.shape[1], (fill,))
    return attn


def _find_qk(
    query: Tensor, rpb: Tensor | None, kernel_size: Sequence[int]
) -> tuple[Kernel | None, Tensor | None]:
    """Return a kernel and the bias to give it; a bias of zeros serves a call without one."""
    dim, dtype, device = query.shape[-1], query.dtype, query.device
    kernel = find("qk", kernel_size, dim, dtype, rpb is not None, dim, device)
    if kernel is not None or rpb is not None:
        return kernel, rpb
    kernel = find("qk", kernel_size, dim, dtype, True, dim, device)
    if kernel is None:
        return None, None
    shape = (query.shape[1], *(2 * size - 1 for size in kernel_size))
    return kernel, query.new_zeros(shape, dtype=accumulator(dtype))


def av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> Tensor:
    """Return the sum of the values in each window, weighted, `[B, heads, *S, head_dim]`.

    attn: `[B, heads, *S, taps]`; ignored where a tap has no key. value: `[B, heads_kv, *S,
    head_dim]`, in the dtype of attn, as is the result.
    """
    options = (kernel_size, dilation, stride, is_causal)
    return _weighted("av", attn, value, attn.shape[1] // max(value.shape[1], 1), *options)


def inverse_av(
    attn: Tensor,
    vector: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> Tensor:
    """Return, at each key, the sum of the vectors of its queries, weighted: the transpose of `av`.

    attn: as for `av`. vector: `[B, heads, *S, head_dim]`; so is the result.
    """
    return _weighted("inverse_av", attn, vector, 1, kernel_size, dilation, stride, is_causal)


def _weighted(
    operation: str,
    attn: Tensor,
    vectors: Tensor,
    group: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> Tensor:
    dim, dtype = vectors.shape[-1], attn.dtype
    result = attn.new_empty((*attn.shape[:-1], dim))
    if result.numel() == 0:
        return result
    kind = (kernel_size, dim, dtype, False, dim, attn.device)
    kernel = find(operation, *kind)
    if kernel is None:
        report(operation, *kind)
        function = reference.neighborhood_sum if operation == "av" else reference.attended_sum
        where = _where(dilation, stride, is_causal)
        with without_autocast(attn.device):
            return _first(function(_last(attn), _last(vectors), list(kernel_size), **where))
    tail = scalars(1.0, attn.shape[2:-1], dilation, stride, is_causal)
    launch(kernel, operation, (attn, vectors), (result,), tail, group)
    return result


def sum_rpb(
    d_attn: Tensor,
    head_dim: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> Tensor:
    """Return the sum of d_attn at each relative position, `[heads, 2*K0-1, ...]`.

    d_attn: `[B, heads, *S, taps]`; ignored where a tap has no key. head_dim: says which kernel
    does it, and nothing else. The result is in the accumulator's dtype.
    """
    dtype = accumulator(d_attn.dtype)
    shape = (d_attn.shape[1], *(2 * size - 1 for size in kernel_size))
    if d_attn.numel() == 0:
        return d_attn.new_zeros(shape, dtype=dtype)
    kind = (kernel_size, head_dim, d_attn.dtype, True, head_dim, d_attn.device)
    kernel = find("sum_rpb", *kind)
    if kernel is None:
        report("sum_rpb", *kind)
        where = _where(dilation, stride, is_causal)
        return as_new(reference.rpb_sum(_last(d_attn), list(kernel_size), **where))
    heads_last = d_attn.movedim(1, -2)
    number = chunks(heads_last, math.prod(shape) * dtype.itemsize)
    partial = d_attn.new_empty((number, *shape), dtype=dtype)
    tail = scalars(1.0, d_attn.shape[2:-1], dilation, stride, is_causal)
    launch(kernel, "sum_rpb", (d_attn,), (partial,), tail, 1)
    return partial.sum(0)


def _where(
    dilation: Sequence[int], stride: Sequence[int], is_causal: Sequence[bool]
) -> dict[str, Any]:
    return {"dilation": list(dilation), "stride": list(stride), "is_causal": list(is_causal)}


def _last(tensor: Tensor) -> Tensor:
    """Heads-first to heads-last."""
    return tensor.movedim(1, -2)


def _first(tensor: Tensor) -> Tensor:
    """Heads-last to heads-first, as a result."""
    return as_new(tensor.movedim(-2, 1))
