"""Running one call: on a compiled kernel where one covers it, else on the reference, and say so.

Everything here works on checked arguments; `natc.functional` checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from natc.errors import ArgumentError
from natc.fallback import Options, reference, reference_is_forced, report
from natc.runtime import registry
from natc.runtime.load import Kernel

# Kernels compute positions in memory in 32 bits.
_MOST_ELEMENTS = 2**31 - 1


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

    Arguments and results as for `natc.na2d`, one option per axis; rpb is float32, or float64
    beside a float64 query. Raises LibraryError, NotCoveredError and ArgumentError as `natc.na2d`
    does.
    """
    with_lse = operation == "forward_lse"
    if query.numel() == 0:
        return _results(query, with_lse)
    kernel = _kernel(operation, query, rpb, kernel_size, stride, is_causal)
    if kernel is None:
        options = Options(kernel_size, dilation, stride, is_causal, scale)
        return reference(query, key, value, rpb, options, return_lse=with_lse)
    if query.numel() > _MOST_ELEMENTS:
        options = Options(kernel_size, dilation, stride, is_causal, scale)
        return _in_parts(operation, query, key, value, rpb, options)
    alignment = kernel.alignment
    inputs = [query, key, value] if rpb is None else [query, key, value, rpb]
    results = _results(query, with_lse)
    arguments = (
        *(_ready(tensor, alignment) for tensor in inputs),
        *results,
        scale,
        # Kernels count in 32 bits; beyond the map, one dilation is as good as another.
        min(dilation[0], query.shape[1]),
        min(dilation[1], query.shape[2]),
    )
    if query.is_cuda and query.device.index != torch.cuda.current_device():
        # Launching makes the tensors' device current and would leave it so.
        with torch.cuda.device(query.device):
            kernel.function(*arguments)
    else:
        # OpenMP counts its threads in each thread apart: this hands torch's number to this one.
        torch.get_num_threads()
        kernel.function(*arguments)
    return results


def _in_parts(
    operation: str, query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, options: Options
) -> tuple[Tensor, ...]:
    """Run a call that is too large for a kernel on parts of its batch."""
    fitting = _MOST_ELEMENTS // query[0].numel()
    if fitting == 0:
        raise ArgumentError(
            f"query has shape {list(query.shape)}, {query[0].numel()} elements in each entry of "
            f"the batch; a kernel takes at most {_MOST_ELEMENTS}."
        )
    parts = [
        run(
            operation, *part, rpb, options.kernel_size, options.dilation, options.stride,
            options.is_causal, options.scale,
        )
        for part in zip(query.split(fitting), key.split(fitting), value.split(fitting))
    ]  # fmt: skip
    return tuple(torch.cat(results) for results in zip(*parts))


def _results(query: Tensor, with_lse: bool) -> tuple[Tensor, ...]:
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    return (output, empty_lse(query)) if with_lse else (output,)


def empty_lse(query: Tensor) -> Tensor:
    """Return an uninitialised logsumexp for a query: float32, or float64 for a float64 query."""
    dtype = torch.float64 if query.dtype is torch.float64 else torch.float32
    return query.new_empty(query.shape[:-1], dtype=dtype)


def _kernel(
    operation: str,
    query: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> Kernel | None:
    """Return the kernel for a call, or None after the one warning, or raise NotCoveredError."""
    if reference_is_forced():
        return None
    plain = stride[0] == 1 == stride[1] and not (is_causal[0] or is_causal[1])
    if plain:
        kernel = registry.resolved[
            operation,
            tuple(kernel_size),
            query.shape[-1],
            query.dtype,
            rpb is not None,
            query.device,
        ]
        if kernel is not None:
            return kernel
    report(operation, query, rpb is not None, kernel_size, stride, is_causal)
    return None


def _ready(tensor: Tensor, alignment: int) -> Tensor:
    """Return a tensor as a kernel takes it, compact and aligned: itself, or else a copy."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    # A kernel assumes the alignment in its loads; a pointer that breaks it ends the process.
    if tensor.data_ptr() % alignment:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor
