"""The unfused operations on checked arguments: on kernels, or on the reference.

Layouts are heads-first, as in `natc.operations`. The operations are linear in each tensor and
closed under differentiation: the gradient of each is made of the others (see `natc.ops.unfused`).
Every function raises LibraryError, NotCoveredError and ArgumentError as `natc.na2d` does. None
scales: the scale of its options is 1, as by default.
"""

from __future__ import annotations

import math

from torch import Tensor

from natc import reference
from natc.dispatch.call import Options
from natc.dispatch.fallback import as_new, find, report
from natc.dispatch.fused_backward import chunks
from natc.dispatch.launch import launch
from natc.reference.layout import accumulator, without_autocast
from natc.runtime.load import Kernel
from natc.runtime.registry import KernelKey


def qk(query: Tensor, key: Tensor, rpb: Tensor | None, fill: float, options: Options) -> Tensor:
    """Return query key^T + rpb for each tap, `[B, heads, *S, taps]` in the dtype of query.

    query: `[B, heads, *S, head_dim]`. key: `[B, heads_kv, *S, head_dim]`. rpb: `[heads, 2*K0-1,
    ...]` in the accumulator's dtype. fill: the result at taps without a key.
    """
    attn = query.new_empty((*query.shape[:-1], math.prod(options.kernel_size)))
    if attn.numel() == 0:
        return attn
    dim = query.shape[-1]
    kernel_key = options.kernel_key("qk", query, dim, dim, rpb is not None)
    kernel, bias = _find_qk(kernel_key, query, rpb)
    if kernel is None:
        report(kernel_key)
        # Autocast would run the reference's products in 16 bits, in which it does not accumulate.
        with without_autocast(query.device):
            logits = reference.neighborhood_logits(
                _heads_last(query), _heads_last(key), rpb=rpb, fill=fill, **options._asdict()
            )
        return _result(logits.to(query.dtype))
    inputs = (query, key) if bias is None else (query, key, bias)
    group = query.shape[1] // key.shape[1]
    launch(kernel, "qk", inputs, (attn,), options.scalars(query.shape[2:-1]), group, (fill,))
    return attn


def _find_qk(
    kernel_key: KernelKey, query: Tensor, rpb: Tensor | None
) -> tuple[Kernel | None, Tensor | None]:
    """Return a kernel and the bias to pass to it; a bias of zeros serves a call without one."""
    kernel = find(kernel_key)
    if kernel is not None or rpb is not None:
        return kernel, rpb
    kernel = find(kernel_key._replace(rpb=True))
    if kernel is None:
        return None, None
    shape = (query.shape[1], *(2 * size - 1 for size in kernel_key.kernel_size))
    return kernel, query.new_zeros(shape, dtype=accumulator(query.dtype))


def av(attn: Tensor, value: Tensor, options: Options) -> Tensor:
    """Return the sum over each window of attn times value, `[B, heads, *S, head_dim]`.

    attn: `[B, heads, *S, taps]`; ignored at taps without a key. value: `[B, heads_kv, *S,
    head_dim]`, in the dtype of attn, as is the result.
    """
    return _sum_products("av", attn, value, attn.shape[1] // max(value.shape[1], 1), options)


def inverse_av(attn: Tensor, vector: Tensor, options: Options) -> Tensor:
    """Return, at each key, the sum over its queries of attn times vector: the transpose of `av`.

    attn: as for `av`. vector: `[B, heads, *S, head_dim]`; so is the result.
    """
    return _sum_products("inverse_av", attn, vector, 1, options)


def _sum_products(
    operation: str, attn: Tensor, vectors: Tensor, group: int, options: Options
) -> Tensor:
    """Return the result of `av` or `inverse_av`; group: heads of attn for each of vectors."""
    dim = vectors.shape[-1]
    result = attn.new_empty((*attn.shape[:-1], dim))
    if result.numel() == 0:
        return result
    kernel_key = options.kernel_key(operation, attn, dim, dim, rpb=False)
    kernel = find(kernel_key)
    if kernel is None:
        report(kernel_key)
        function = reference.neighborhood_sum if operation == "av" else reference.attended_sum
        with without_autocast(attn.device):
            sums = function(_heads_last(attn), _heads_last(vectors), **options.window())
        return _result(sums)
    tail = options.scalars(attn.shape[2:-1])
    launch(kernel, operation, (attn, vectors), (result,), tail, group)
    return result


def sum_rpb(d_attn: Tensor, head_dim: int, options: Options) -> Tensor:
    """Return the sum of d_attn at each relative position, `[heads, 2*K0-1, ...]`.

    d_attn: `[B, heads, *S, taps]`; ignored at taps without a key. head_dim: selects the kernel,
    and changes nothing else. The result is in the accumulator's dtype.
    """
    dtype = accumulator(d_attn.dtype)
    shape = (d_attn.shape[1], *(2 * size - 1 for size in options.kernel_size))
    if d_attn.numel() == 0:
        return d_attn.new_zeros(shape, dtype=dtype)
    kernel_key = options.kernel_key("sum_rpb", d_attn, head_dim, head_dim, rpb=True)
    kernel = find(kernel_key)
    if kernel is None:
        report(kernel_key)
        return as_new(reference.rpb_sum(_heads_last(d_attn), **options.window()))
    heads_last = d_attn.movedim(1, -2)
    number = chunks(heads_last, math.prod(shape) * dtype.itemsize)
    partial = d_attn.new_empty((number, *shape), dtype=dtype)
    launch(kernel, "sum_rpb", (d_attn,), (partial,), options.scalars(d_attn.shape[2:-1]), 1)
    return partial.sum(0)


def _heads_last(tensor: Tensor) -> Tensor:
    """Return `[B, heads, *S, n]` as `[B, *S, heads, n]`."""
    return tensor.movedim(1, -2)


def _result(tensor: Tensor) -> Tensor:
    """Return `[B, *S, heads, n]` as an operator's result `[B, heads, *S, n]`."""
    return as_new(tensor.movedim(-2, 1))
