"""The gradients of fused attention: on kernels where they cover the call, or on the reference.

Kernels recompute the weights from query, key and the logsumexp, so that nothing of the size of
queries times taps is kept. Where several heads share a key, a kernel gives one gradient for each,
and torch adds them up, as it does partial sums of the bias's gradient: nothing is added in an
order that could change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from natc import reference
from natc.dispatch.fallback import as_new, find, report
from natc.dispatch.launch import launch, ready, scalars
from natc.reference.backward import of_group
from natc.reference.layout import accumulator, within, without_autocast
from natc.runtime.load import Kernel

GRADIENTS = ("d_query", "d_key", "d_value", "d_rpb")

# Partial sums take this many bytes at most, or as many as the query.
_PARTIAL_BYTES = 4 * 2**20
# More chunks keep no more processors busy; fewer queries than this are not worth one.
_MOST_CHUNKS, _MOST_CHUNKS_CUDA = 64, 8192
_QUERIES_OF_A_CHUNK = 32


class _Saved(NamedTuple):
    """What the forward of a call leaves for its gradients."""

    query: Tensor
    key: Tensor
    value: Tensor
    rpb: Tensor | None
    output: Tensor
    lse: Tensor


class _Options(NamedTuple):
    kernel_size: Sequence[int]
    dilation: Sequence[int]
    stride: Sequence[int]
    is_causal: Sequence[bool]
    scale: float


def backward(
    d_output: Tensor,
    d_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key, value and rpb, compact, in the dtypes of these.

    Args:
        d_output, d_lse: gradients of the results; a d_lse of None stands for zeros.
        output, lse: the results.
        wanted: four flags; what is not wanted, or is of no rpb, is an empty tensor.
        query, key, value, rpb and the options: as for `fused_forward.run`, which raises the same
            errors.
    """
    given = (query, key, value, rpb)
    names = [n for n, t, flag in zip(GRADIENTS, given, wanted) if flag and t is not None]
    options = _Options(kernel_size, dilation, stride, is_causal, scale)
    saved = _Saved(query, key, value, rpb, output, lse)
    if not names:
        return _complete((None,) * len(given), wanted, query)
    kernels = _kernels(names, query, rpb, value, kernel_size) if query.numel() else None
    if kernels is None:
        return tuple(map(as_new, composed(d_output, d_lse, *saved, wanted, *options)))
    found = _on_kernels(kernels, d_output, d_lse, saved, options)
    return _complete(found, wanted, query)


def composed(
    d_output: Tensor,
    d_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, ...]:
    """Return what `backward` does, by the reference: differentiable in either mode, to any order.

    It computes output and lse anew, so that what depends on them depends on query, key, value and
    rpb.
    """
    given = (query, key, value, rpb)
    if query.numel() == 0:
        found = tuple(None if t is None else torch.zeros_like(t) for t in given)
        return _complete(found, wanted, query)
    sizes, dilations, strides = within(query.shape[1:-2], kernel_size, dilation, stride, rpb=rpb)
    # Autocast would run the reference's products in 16 bits, in which it does not accumulate.
    with without_autocast(query.device):
        found = reference.neighborhood_gradients(
            query,
            key,
            value,
            sizes,
            d_output,
            d_lse,
            dilation=dilations,
            stride=strides,
            is_causal=list(is_causal),
            scale=scale,
            rpb=rpb,
            wanted=wanted,
        )
    return _complete(found, wanted, query)


def second(
    d_output: Tensor,
    d_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    directions: Sequence[Tensor | None],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> Sequence[Tensor | None]:
    """Return the gradients of `backward` in its first six arguments, by the reference.

    directions: gradients of its results, None for one that is not wanted or zero.
    """
    if query.numel() == 0:
        return tuple(
            None if t is None else torch.zeros_like(t)
            for t in (d_output, d_lse, query, key, value, rpb)
        )
    sizes, dilations, strides = within(query.shape[1:-2], kernel_size, dilation, stride, rpb=rpb)
    with without_autocast(query.device):
        return reference.neighborhood_second_gradients(
            query,
            key,
            value,
            sizes,
            d_output,
            d_lse,
            directions,
            dilation=dilations,
            stride=strides,
            is_causal=list(is_causal),
            scale=scale,
            rpb=rpb,
        )


def _complete(
    found: Sequence[Tensor | None], wanted: Sequence[bool], query: Tensor
) -> tuple[Tensor, ...]:
    """Put an empty tensor for each gradient that is not wanted: an operator returns four."""
    return tuple(
        query.new_empty(0) if t is None or not flag else t.contiguous()
        for t, flag in zip(found, wanted)
    )


def _kernels(
    names: Sequence[str],
    query: Tensor,
    rpb: Tensor | None,
    value: Tensor,
    kernel_size: Sequence[int],
) -> dict[str, Kernel] | None:
    """Return the kernels for some gradients, or None after the one warning."""
    kernels = {}
    sizes = (kernel_size, query.shape[-1], query.dtype)
    where = (value.shape[-1], query.device)
    for name in names if names == ["d_value"] else ("delta", *names):
        kernel = find(name, *sizes, rpb is not None, *where)
        if kernel is None:
            report(name, *sizes, rpb is not None, *where)
            return None
        kernels[name] = kernel
    return kernels


def _on_kernels(
    kernels: dict[str, Kernel],
    d_output: Tensor,
    d_lse: Tensor | None,
    saved: _Saved,
    options: _Options,
) -> tuple[Tensor | None, ...]:
    """Return the gradients that there are kernels for."""
    # Copied once, if at all, and not for each kernel.
    alignment = max(kernel.alignment for kernel in kernels.values())
    query, key, value, output, lse, d_output = (
        ready(t, alignment)
        for t in (saved.query, saved.key, saved.value, saved.output, saved.lse, d_output)
    )
    bias: tuple[Tensor, ...] = ()
    if saved.rpb is not None:
        bias = (ready(saved.rpb, alignment),)
    tail = scalars(
        options.scale, query.shape[1:-2], options.dilation, options.stride, options.is_causal
    )
    group = query.shape[-2] // key.shape[-2]
    acc = accumulator(query.dtype)

    delta = None
    if "delta" in kernels:
        delta = lse.new_empty(lse.shape)
        launch(kernels["delta"], "delta", (d_output, output), (delta,), tail, 1)
        if d_lse is not None:
            delta -= d_lse
    if d_lse is not None:
        # A softmax of nothing but -inf is NaN, and so are its gradients; but where neither result
        # was used, as when additional tokens are all that is attended, it has none.
        unused = lse.isneginf() & (d_lse == 0) & (d_output == 0).all(-1)
        # Of any other lse, exp(-inf - lse) is 0.
        lse = lse.masked_fill(unused, 0)
        delta = None if delta is None else delta.masked_fill(unused, 0)

    def gradient(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        result = query.new_empty(shape, dtype=dtype)
        if name == "d_value":
            inputs = (query, key, *bias, d_output, lse)
        elif delta is None:
            raise RuntimeError(f"{name} needs delta, which was not computed")
        else:
            inputs = (query, key, value, *bias, d_output, lse, delta)
        launch(kernels[name], name, inputs, (result,), tail, group)
        return result

    d_query = d_key = d_value = d_rpb = None
    if "d_query" in kernels:
        d_query = gradient("d_query", query.shape, query.dtype)
    if "d_key" in kernels:
        d_key = of_group(gradient("d_key", query.shape, key.dtype), key.shape[-2]).to(key.dtype)
    if "d_value" in kernels:
        of_heads = gradient("d_value", d_output.shape, value.dtype)
        d_value = of_group(of_heads, value.shape[-2]).to(value.dtype)
    if "d_rpb" in kernels:
        shape = bias[0].shape
        number = chunks(query, bias[0].numel() * acc.itemsize)
        d_rpb = gradient("d_rpb", (number, *shape), acc).sum(0)
    return d_query, d_key, d_value, d_rpb


def chunks(query: Tensor, bytes_of_one: int) -> int:
    """Return the number of partial sums that the gradient of a bias is made of.

    It depends on nothing but sizes and the kind of device, so that the order of additions, hence
    every bit, is the same on every run. bytes_of_one: size of one of them.
    """
    room = max(_PARTIAL_BYTES, query.numel() * query.element_size()) // max(bytes_of_one, 1)
    queries = math.prod(query.shape[:-2])
    most = _MOST_CHUNKS_CUDA if query.is_cuda else _MOST_CHUNKS
    return max(1, min(most, queries // _QUERIES_OF_A_CHUNK, room))
