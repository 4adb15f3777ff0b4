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
from natc.dispatch.launch import MOST_ELEMENTS, launch_on_cpu, ready
from natc.operations import GRADIENTS
from natc.reference.backward import of_group
from natc.runtime.load import Kernel

_ZERO = torch.zeros(())  # of the accumulators' dtype: kernels of float64 have no sweep


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
    # On a map of rank 3, the sums that a thread keeps may be twice as many as a head's elements.
    if len(kernel_size) == 3 and query.numel() > MOST_ELEMENTS // 4:
        return None
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
    results: Sequence[Tensor] | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of query, key, value and rpb; the last is None if rpb is None.

    results: where to write the first three, each with adjacent channels and aligned; by default
    they are new.
    """
    # Without a gradient of lse, every query reads the same number.
    zeros = _ZERO.expand(query.shape[:-1])
    d_lse = zeros if d_lse is None else ready(d_lse, kernel.alignment)
    if results is None:
        results = [
            torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3)
        ]
    alignment = kernel.alignment
    inputs = [_in_place(tensor, alignment) for tensor in (query, key, value)]
    d_rpb = None
    written = results
    if rpb is not None:
        inputs.append(ready(rpb, alignment))
        d_rpb = torch.empty_like(rpb, memory_format=torch.contiguous_format)
        written = [*results, d_rpb]
    inputs.append(_in_place(d_output, alignment))
    group = query.shape[-2] // key.shape[-2]
    tail = options.scalars(query.shape[1:-2])
    launch_on_cpu(kernel, (*inputs, d_lse, *written, *tail, group))
    d_query, d_key, d_value = results
    if group > 1:
        d_key, d_value = (of_group(t, key.shape[-2]).to(t.dtype) for t in (d_key, d_value))
    return d_query, d_key, d_value, d_rpb


def can_hold(tensor: Tensor, alignment: int) -> bool:
    """Return whether a sweep reads or writes a tensor of `[B, *S, H, channels]` in place.

    The channels of a token must be adjacent, and offsets fit into 32 bits.
    """
    if tensor.data_ptr() % alignment:
        return False
    if tensor.is_contiguous():
        return True
    strides = tensor.stride()
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, strides))
    return strides[-1] == 1 and last < MOST_ELEMENTS


def _in_place(tensor: Tensor, alignment: int) -> Tensor:
    """Return a tensor that a sweep can read: the same, or else a copy."""
    return tensor if can_hold(tensor, alignment) else ready(tensor, alignment)
