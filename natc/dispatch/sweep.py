"""All gradients of a call by one kernel, which goes over the queries once.

It serves CPUs, and calls without a stride or a causal axis whose dilation groups are all as long
as the window. Others take a kernel for each gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natc.dispatch.call import Options
from natc.dispatch.fallback import find
from natc.dispatch.launch import MOST_ELEMENTS, launch
from natc.operations import GRADIENTS
from natc.reference.backward import of_group
from natc.reference.layout import accumulator
from natc.runtime.load import Kernel


def is_swept(
    kernel_size: Sequence[int],
    sizes: Sequence[int],
    *,
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> bool:
    """Return whether the operation `gradients` serves calls with a window on a map."""
    return (
        max(stride) == 1
        and not any(is_causal)
        and all(k * d <= size for k, d, size in zip(kernel_size, dilation, sizes))
    )


def sweep_kernel(
    query: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    lse: Tensor,
    d_lse: Tensor | None,
    options: Options,
) -> Kernel | None:
    """Return the kernel of `gradients` for a call, or None if there is none that serves it."""
    if query.is_cuda or max(query.numel(), value.numel()) > MOST_ELEMENTS:
        return None
    kernel_size, stride, dilation, is_causal = options[:4]
    if not is_swept(
        kernel_size, query.shape[1:-2], dilation=dilation, stride=stride, is_causal=is_causal
    ):
        return None
    # A softmax of nothing but -inf: additional tokens may be all that a query attends to.
    if d_lse is not None and bool(lse.isneginf().any()):
        return None
    channels = query.shape[-1], value.shape[-1]
    return find(options.kernel_key(GRADIENTS, query, *channels, rpb is not None))


def run_sweep(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    d_output: Tensor,
    d_lse: Tensor | None,
    options: Options,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of query, key, value and rpb; the last is None if rpb is None."""
    acc = accumulator(query.dtype)
    if d_lse is None:
        d_lse = query.new_zeros(query.shape[:-1], dtype=acc)
    results = [torch.empty(query.shape, dtype=t.dtype) for t in (query, key, value)]
    inputs = [query, key, value]
    if rpb is not None:
        inputs.append(rpb)
        results.append(torch.empty(rpb.shape, dtype=acc))
    group = query.shape[-2] // key.shape[-2]
    tail = options.scalars(query.shape[1:-2])
    launch(kernel, GRADIENTS, [*inputs, d_output, d_lse], results, tail, group)
    d_query, d_key, d_value = results[:3]
    if group > 1:
        d_key, d_value = (of_group(t, key.shape[-2]).to(t.dtype) for t in (d_key, d_value))
    return d_query, d_key, d_value, None if rpb is None else results[3]
