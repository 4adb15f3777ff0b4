"""The two halves of neighborhood attention, heads-first: `na1d_qk`, `na1d_av` and so on.

`qk`, a softmax over the last axis, and `av` make attention. Between them the caller may change the
logits or the probabilities, a tensor of queries times taps. Neither function scales.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from natc.functional import arguments
from natc.functional.fused import Flags, PerAxis
from natc.ops import run_av, run_qk
from natc.reference.layout import accumulator, without_autocast


def na1d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """Return query key^T + rpb for the taps of each query: `na2d_qk` with one spatial axis."""
    options = (kernel_size, stride, dilation, is_causal, 1.0)
    return _qk(1, query, key, options, rpb, additional_keys)


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """Return query key^T + rpb for the taps of each query, unscaled.

    Args:
        query: `[B, heads, height, width, head_dim]`; float32, float16, bfloat16 or float64.
        key: `[B, heads_kv, height, width, head_dim]`, dtype and device of query; heads_kv divides
            heads.
        additional_keys: `[B, heads_kv, tokens, head_dim]`: every query attends to these too; rpb
            does not apply.
        kernel_size, stride, dilation, is_causal, rpb: as for `natc.neighborhood_attention`, whose
            documentation covers autocast, missing kernels and derivatives. Here derivatives of any
            order run on kernels.

    Returns:
        `[B, heads, height, width, K0*K1 + tokens]` in the dtype of query: the taps in row-major
        order, -inf where a tap has no key (on a causal axis, or where the window is larger than
        the map), then the additional tokens.

    Raises:
        ArgumentError, ArgumentTypeError, LibraryError, NotCoveredError: as for
            `natc.neighborhood_attention`.
    """
    options = (kernel_size, stride, dilation, is_causal, 1.0)
    return _qk(2, query, key, options, rpb, additional_keys)


def na3d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """Return query key^T + rpb for the taps of each query: `na2d_qk` with 3 spatial axes."""
    options = (kernel_size, stride, dilation, is_causal, 1.0)
    return _qk(3, query, key, options, rpb, additional_keys)


def na1d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    additional_values: Tensor | None = None,
) -> Tensor:
    """Return the sum over each window of attn times value: `na2d_av` with one spatial axis."""
    options = (kernel_size, stride, dilation, is_causal, 1.0)
    return _av(1, attn, value, options, additional_values)


def na2d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    additional_values: Tensor | None = None,
) -> Tensor:
    """Return the sum over each window of attn times value.

    Args:
        attn: probabilities, or any factors, `[B, heads, height, width, K0*K1 + tokens]`, in the
            order of `na2d_qk`; entries at taps without a key are ignored.
        value: `[B, heads_kv, height, width, value_dim]`, dtype and device of attn; heads_kv
            divides heads.
        additional_values: `[B, heads_kv, tokens, value_dim]`.
        kernel_size, stride, dilation, is_causal, and Raises: as for `na2d_qk`.

    Returns:
        `[B, heads, height, width, value_dim]` in the dtype of attn.
    """
    options = (kernel_size, stride, dilation, is_causal, 1.0)
    return _av(2, attn, value, options, additional_values)


def na3d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    additional_values: Tensor | None = None,
) -> Tensor:
    """Return the sum over each window of attn times value: `na2d_av` with 3 spatial axes."""
    options = (kernel_size, stride, dilation, is_causal, 1.0)
    return _av(3, attn, value, options, additional_values)


def _qk(rank: int, query: Any, key: Any, unchecked: Any, rpb: Any, keys: Any) -> Tensor:
    """Check the arguments and return `na2d_qk` of any rank; unchecked: options, as in Options."""
    named = [("query", query), ("key", key)]
    if keys is not None:
        named.append(("additional_keys", keys))
    query, key, *tokens = arguments.tensors(*named)
    arguments.axes("query", query, rank, "[batch, heads, {}, head_dim]")
    batch, heads, *spatial, head_dim = query.shape
    because = f"as query has shape {list(query.shape)}"
    arguments.shape("key", key, (batch, "heads_kv", *spatial, head_dim), because)
    heads_kv = key.shape[1]
    arguments.divides("key", heads_kv, heads)
    options = arguments.options(rank, head_dim, unchecked)
    if rpb is not None:
        rpb = arguments.bias(rpb, query, heads, options.kernel_size)
    for extra_keys in tokens:
        because = f"as key has shape {list(key.shape)}"
        expected = (batch, heads_kv, "tokens", head_dim)
        arguments.shape("additional_keys", extra_keys, expected, because)
    attn: Tensor = run_qk(query, key, rpb, -math.inf, options)
    for extra_keys in tokens:
        extra = _product(_rows(query, heads_kv), extra_keys.transpose(-1, -2))
        extra = extra.reshape(batch, heads, *spatial, extra_keys.shape[2])
        attn = torch.cat((attn, extra.to(attn.dtype)), dim=-1)
    return attn


def _av(rank: int, attn: Any, value: Any, unchecked: Any, values: Any) -> Tensor:
    """Check the arguments and return `na2d_av` of any rank; unchecked: options, as in Options."""
    named = [("attn", attn), ("value", value)]
    if values is not None:
        named.append(("additional_values", values))
    attn, value, *tokens = arguments.tensors(*named)
    arguments.axes("value", value, rank, "[batch, heads_kv, {}, value_dim]")
    batch, heads_kv, *spatial, value_dim = value.shape
    options = arguments.options(rank, value_dim, unchecked)
    for extra_values in tokens:
        because = f"as value has shape {list(value.shape)}"
        expected = (batch, heads_kv, "tokens", value_dim)
        arguments.shape("additional_values", extra_values, expected, because)
    taps, number = (
        math.prod(options.kernel_size),
        sum(extra_values.shape[2] for extra_values in tokens),
    )
    because = f"{taps} taps and {number} additional tokens for value of shape {list(value.shape)}"
    arguments.shape("attn", attn, (batch, "heads", *spatial, taps + number), because)
    heads = attn.shape[1]
    arguments.divides("value", heads_kv, heads, of="attn")
    output: Tensor = run_av(attn[..., :taps] if tokens else attn, value, options)
    for extra_values in tokens:
        extra = _product(_rows(attn[..., taps:], heads_kv), extra_values)
        output = (output + extra.reshape(output.shape)).to(output.dtype)
    return output


def _rows(tensor: Tensor, heads_kv: int) -> Tensor:
    """Return `[B, heads, *S, n]` as `[B, heads_kv, rows, n]`: heads that share a key are rows."""
    rows = math.prod(tensor.shape[1:-1]) // max(heads_kv, 1)
    return tensor.reshape(tensor.shape[0], heads_kv, rows, tensor.shape[-1])


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rows @ matrix, computed and returned in the accumulator's dtype."""
    compute = accumulator(rows.dtype)
    with without_autocast(rows.device):
        return rows.to(compute) @ matrix.to(compute)
