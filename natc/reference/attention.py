"""The forward direction of the reference: logits, sums over windows, and their composition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError
from natc.reference.layout import (
    accumulator,
    grouped,
    heads_first,
    heads_last,
    matmul,
    neighborhood,
)
from natc.reference.validate import (
    check_keys,
    check_query,
    check_shape,
    check_tensor,
)

PerAxis = int | Sequence[int]
PerAxisFlag = bool | Sequence[bool]


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: PerAxisFlag = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **terms: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return softmax(scale * query key^T + rpb) value over the neighborhood of each query.

    Differentiable, to any order, in every tensor and through both results. 16-bit inputs are
    computed in float32. `natc.window` defines which keys form a neighborhood.

    Args:
        query: `[batch, *spatial, heads, head_dim]`; float16, bfloat16, float32 or float64.
        key: `[batch, *spatial, heads_kv, head_dim]`, dtype of query. heads_kv divides heads, and
            query head h uses key head h // (heads / heads_kv).
        value: `[batch, *spatial, heads_kv, value_dim]`, dtype of query.
        kernel_size: keys per axis, >= 1; one int, or one for each axis. More than the axis has is
            no error: a query then attends to its whole dilation group.
        stride: this many queries in a row share a window, 1 to kernel_size.
        dilation: distance between neighbors, >= 1.
        is_causal: a query attends to no key after itself on that axis.
        scale: factor of the dot products; None means head_dim ** -0.5.
        rpb: `[heads, 2*K0-1, ...]`, any float dtype: added to the scaled dot products at the
            offset of key from query; itself not scaled.
        additional_keys: `[batch, tokens, heads_kv, head_dim]`: every query attends to these too.
        additional_values: `[batch, tokens, heads_kv, value_dim]`.
        return_lse: also return the natural log of the softmax's denominator.
        terms: further terms of a logit, by name: see `logits_of`.

    Returns:
        output `[batch, *spatial, heads, value_dim]` in the dtype of query, or (output, lse) with
        lse `[batch, *spatial, heads]` in float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a shape, device or number that is not allowed.
        ArgumentTypeError: a type or dtype that is not allowed.
    """
    if (additional_keys is None) != (additional_values is None):
        missing = "additional_keys" if additional_keys is None else "additional_values"
        raise ArgumentError(
            f"{missing} is None; additional_keys and additional_values must be given together."
        )
    window: dict[str, Any] = {"stride": stride, "dilation": dilation, "is_causal": is_causal}
    logits = neighborhood_logits(
        query,
        key,
        kernel_size,
        **window,
        scale=scale,
        rpb=rpb,
        additional_keys=additional_keys,
        **terms,
    )
    check_tensor("value", value, like=query)
    check_shape("value", value, (*key.shape[:-1], "value_dim"))
    if additional_keys is not None and additional_values is not None:
        check_tensor("additional_values", additional_values, like=query)
        expected = (*additional_keys.shape[:3], value.shape[-1])
        check_shape("additional_values", additional_values, expected)
    probabilities = logits.softmax(-1)
    output = neighborhood_sum(
        probabilities, value, kernel_size, additional_values=additional_values, **window
    ).to(query.dtype)
    return (output, logits.logsumexp(-1)) if return_lse else output


def neighborhood_logits(
    query: Tensor,
    key: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: PerAxisFlag = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    fill: float = -math.inf,
    **terms: Any,
) -> Tensor:
    """Return the logits, the softmax's input: scale * query key^T + rpb, one entry per tap.

    Args and Raises: as for `neighborhood_attention`. fill: the entry of a tap without a key.

    Returns:
        `[batch, *spatial, heads, prod(kernel_size) + tokens]` in float32 (float64 for float64
        inputs): the taps in row-major order, then the additional tokens, to which rpb does not
        apply.
    """
    batch, *spatial, heads, head_dim = check_query("query", query)
    check_tensor("key", key, like=query)
    heads_kv = check_keys("key", key, (batch, *spatial), heads, channels=head_dim)
    near = neighborhood(
        spatial, query.device, kernel_size, stride=stride, dilation=dilation, is_causal=is_causal
    )
    compute = accumulator(query.dtype)
    if scale is None:
        scale = head_dim**-0.5
    elif isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ArgumentTypeError(f"scale is {scale!r}; it must be a number or None.")

    by_group = grouped(query.to(compute) * scale, heads_kv)
    gathered = heads_first(key, compute)[:, :, near.positions]
    scaled, bias = matmul(by_group, gathered.transpose(-1, -2)), None
    if rpb is not None:
        check_tensor("rpb", rpb, like=query, any_float=True)
        check_shape("rpb", rpb, (heads, *(2 * size - 1 for size in near.kernel_size)))
        bias = rpb.to(compute).flatten(1)[:, near.bias]
        bias = bias.unflatten(0, (heads_kv, -1)).transpose(1, 2)
    logits = logits_of(scaled, bias, **terms).masked_fill(~near.attended[:, None, :], fill)
    if additional_keys is not None:
        check_tensor("additional_keys", additional_keys, like=query)
        check_shape("additional_keys", additional_keys, (batch, "tokens", heads_kv, head_dim))
        extra = heads_first(additional_keys, compute)[:, :, None]
        of_tokens = logits_of(matmul(by_group, extra.transpose(-1, -2)), **terms)
        logits = torch.cat((logits, of_tokens), dim=-1)
    return heads_last(logits, spatial)


def logits_of(scaled: Tensor, bias: Tensor | None = None, softcap: float = 0.0) -> Tensor:
    """Return scaled + bias; for a softcap that is not 0, softcap * tanh of the sum / softcap."""
    logits = scaled if bias is None else scaled + bias
    return softcap * (logits / softcap).tanh() if softcap else logits


def slope_of(logits: Tensor, softcap: float = 0.0) -> Tensor | float:
    """Return the derivative of `logits_of` in scaled, from its result; 0 for a logit of -inf."""
    return (1 - (logits / softcap).square()).clamp(min=0) if softcap else 1.0


def neighborhood_sum(
    attn: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    additional_values: Tensor | None = None,
    **window: Any,
) -> Tensor:
    """Return the sum over each neighborhood of attn times value.

    Args:
        attn: probabilities, or any factors, `[batch, *spatial, heads, prod(kernel_size) +
            tokens]`, any float dtype, in the order of `neighborhood_logits`. Entries of taps
            without a key are ignored.
        value, kernel_size, additional_values: as for `neighborhood_attention`.
        window: stride, dilation and is_causal, as for `neighborhood_attention`.

    Returns:
        `[batch, *spatial, heads, value_dim]` in the wider of the dtypes of attn and value.

    Raises:
        ArgumentError, ArgumentTypeError: as for `neighborhood_attention`.
    """
    batch, *spatial, heads, entries = check_query("attn", attn)
    check_tensor("value", value, like=attn, any_float=True)
    heads_kv = check_keys("value", value, (batch, *spatial), heads, channels=None)
    near = neighborhood(spatial, attn.device, kernel_size, **window)
    result = torch.promote_types(attn.dtype, value.dtype)
    compute = torch.promote_types(result, torch.float32)
    taps = near.positions.shape[1]
    tokens = 0
    if additional_values is not None:
        check_tensor("additional_values", additional_values, like=value)
        expected = (batch, "tokens", heads_kv, value.shape[-1])
        check_shape("additional_values", additional_values, expected)
        tokens = additional_values.shape[1]
    if entries != taps + tokens:
        raise ArgumentError(
            f"attn has {entries} entries in its last axis; it must have {taps + tokens}: "
            f"{taps} taps and {tokens} additional tokens."
        )

    by_group = grouped(attn.to(compute), heads_kv)
    of_taps = by_group[..., :taps].masked_fill(~near.attended[:, None, :], 0)
    output = matmul(of_taps, heads_first(value, compute)[:, :, near.positions])
    if additional_values is not None:
        extra = heads_first(additional_values, compute)[:, :, None]
        output = output + matmul(by_group[..., taps:], extra)
    return heads_last(output, spatial).to(result)
