"""Fused attention on checked arguments: on a kernel if one covers the call, else on the reference.

Layouts are heads-last, as in `natc.operations`; rpb and lse are in the accumulator's dtype. Every
function raises LibraryError, NotCoveredError and ArgumentError as `natc.na2d` does.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from natc import reference
from natc.dispatch.call import Options
from natc.dispatch.fallback import as_new, find, reference_is_forced, report
from natc.dispatch.launch import launch
from natc.reference.layout import accumulator, without_autocast
from natc.runtime import registry


def run(
    operation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    options: Options,
) -> Any:
    """Return output, or (output, lse) if operation is `forward_lse`, new and contiguous.

    Tensors are as for `natc.na2d`.
    """
    shape = query.shape
    _, *spatial, heads, head_dim = shape
    value_dim = value.shape[-1]
    # `empty_like` is the faster of the two.
    if value_dim == head_dim:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
    else:
        output = query.new_empty((*shape[:-1], value_dim))
    results: tuple[Tensor, ...] = (output,)
    if operation == "forward_lse":
        results = (output, empty_lse(query))
    if query.numel():
        kernel_key = options.kernel_key(operation, query, head_dim, value_dim, rpb is not None)
        # `find`, written out: it saves a call.
        kernel = None if reference_is_forced() else registry.resolved[kernel_key]
        if kernel is None:
            report(kernel_key)
            results = tuple(map(as_new, composed(query, key, value, rpb, options)))
        else:
            inputs = (query, key, value) if rpb is None else (query, key, value, rpb)
            group = heads // key.shape[-2]
            launch(kernel, operation, inputs, results, options.scalars(spatial), group)
    return results if operation == "forward_lse" else results[0]


def run_packed(operation: str, qkv: Tensor, rpb: Tensor | None, options: Options) -> Any:
    """Return `run` of the query, key and value in qkv, read in place by a kernel for packed input.

    qkv: `[B, *S, 3, heads, head_dim]`; without such a kernel, `run` gets views of its parts.
    """
    *leading, _, heads, dim = qkv.shape
    kernel = None
    if qkv.numel() > 0:
        packed = f"{operation}_packed"
        kernel = find(options.kernel_key(packed, qkv, dim, dim, rpb is not None))
    if kernel is None:
        query, key, value = qkv.unbind(-3)
        return run(operation, query, key, value, rpb, options)
    output = qkv.new_empty((*leading, heads, dim))
    results = (output, empty_lse(output)) if operation == "forward_lse" else (output,)
    inputs = (qkv,) if rpb is None else (qkv, rpb)
    launch(kernel, packed, inputs, results, options.scalars(leading[1:]), 1)
    return results if operation == "forward_lse" else output


# The implementations of the operators of the same names.
forward = functools.partial(run, "forward")
forward_lse = functools.partial(run, "forward_lse")
forward_packed = functools.partial(run_packed, "forward")
forward_lse_packed = functools.partial(run_packed, "forward_lse")


def empty_lse(query: Tensor) -> Tensor:
    """Return an uninitialised logsumexp for a query: float32, or float64 for a float64 query."""
    *leading, _ = query.shape
    return query.new_empty(leading, dtype=accumulator(query.dtype))


def composed(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """Return (output, lse) by the reference: differentiable in either mode, to any order."""
    if query.numel() == 0:
        return query.new_empty((*query.shape[:-1], value.shape[-1])), empty_lse(query)
    on_map = options.within(query.shape[1:-2], rpb=rpb)
    # Autocast would run the reference's products in 16 bits, in which it does not accumulate.
    with without_autocast(query.device):
        output, lse = reference.neighborhood_attention(
            query, key, value, rpb=rpb, return_lse=True, **on_map._asdict()
        )
    return output.contiguous(), lse.contiguous()
