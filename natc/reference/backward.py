"""The backward direction of the reference: sums over the queries of a key, and the gradients.

Everything here is differentiable itself, in forward and in reverse mode, to any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from natc.reference.attention import (
    PerAxis,
    PerAxisFlag,
    neighborhood_logits,
    neighborhood_sum,
    slope_of,
)
from natc.reference.layout import accumulator, neighborhood
from natc.reference.validate import check_query, check_shape, check_tensor


def neighborhood_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    d_output: Tensor,
    d_lse: Tensor | None = None,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: PerAxisFlag = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    wanted: Sequence[bool] = (True, True, True, True),
    **terms: Any,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `neighborhood_attention` in query, key, value and rpb.

    With p the probabilities and dp = d_output . value, the gradient of a logit is
    p * (dp - sum(p * dp) + d_lse): the derivative of softmax and of logsumexp. A term
    that changes the logit, as a cap does, multiplies that by its slope.

    Args:
        d_output: gradient of the output, `[batch, *spatial, heads, value_dim]`.
        d_lse: gradient of the logsumexp, `[batch, *spatial, heads]`; None stands for zeros.
        wanted: which of the four gradients to compute; the others are None, and so is d_rpb if
            rpb is None.
        query, key, value, kernel_size, stride, dilation, is_causal, scale, rpb, terms: as
            for `neighborhood_attention`, which raises the same errors.

    Returns:
        d_query, d_key, d_value and d_rpb in the shapes and dtypes of their tensors.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    where: dict[str, Any] = {"stride": stride, "dilation": dilation, "is_causal": is_causal}
    logits = neighborhood_logits(query, key, kernel_size, scale=scale, rpb=rpb, **where, **terms)
    compute = logits.dtype
    probabilities = softmax(logits, d_output, d_lse)
    d_logits = None
    if any(wanted[index] for index in (0, 1, 3)):
        dp = neighborhood_logits(d_output, value, kernel_size, scale=1.0, fill=0.0, **where)
        d_logits = dp - (probabilities * dp).sum(-1, keepdim=True)
        if d_lse is not None:
            d_logits = d_logits + d_lse.to(compute).unsqueeze(-1)
        d_logits = probabilities * d_logits * slope_of(logits, **terms)

    d_query = d_key = d_value = d_rpb = None
    if wanted[0] and d_logits is not None:
        d_query = neighborhood_sum(d_logits * scale, key, kernel_size, **where).to(query.dtype)
    if wanted[1] and d_logits is not None:
        of_heads = attended_sum(d_logits * scale, query, kernel_size, **where)
        d_key = of_group(of_heads, key.shape[-2]).to(key.dtype)
    if wanted[2]:
        of_heads = attended_sum(probabilities, d_output, kernel_size, **where)
        d_value = of_group(of_heads, value.shape[-2]).to(value.dtype)
    if rpb is not None and wanted[3] and d_logits is not None:
        d_rpb = rpb_sum(d_logits, kernel_size, **where).to(rpb.dtype)
    return d_query, d_key, d_value, d_rpb


def softmax(logits: Tensor, d_output: Tensor, d_lse: Tensor | None) -> Tensor:
    """Return the softmax of logits, as gradients need it: 0 instead of NaN for an unused query.

    A softmax of logits that are all -inf is NaN, and so are its gradients. But a query has no
    gradient if d_output and d_lse are 0, as when it attends to additional tokens alone.
    """
    probabilities = logits.softmax(-1)
    if d_lse is None:
        return probabilities
    unused = logits.isneginf().all(-1) & (d_lse == 0) & (d_output == 0).all(-1)
    return probabilities.masked_fill(unused.unsqueeze(-1), 0)


def attended_sum(attn: Tensor, vectors: Tensor, kernel_size: PerAxis, **window: Any) -> Tensor:
    """Return, at each key, the sum of attn times vectors over the queries that attend to it.

    It is the transpose of `neighborhood_sum`, where a query sums over its keys.

    Args:
        attn: `[batch, *spatial, heads, prod(kernel_size)]`, any float dtype; entries of taps
            without a key are ignored.
        vectors: one for each query, `[batch, *spatial, heads, channels]`, any float dtype.
        kernel_size, and window: stride, dilation and is_causal, as for `neighborhood_attention`.

    Returns:
        `[batch, *spatial, heads, channels]` in the wider of the dtypes of attn and vectors.

    Raises:
        ArgumentError, ArgumentTypeError: as for `neighborhood_attention`.
    """
    batch, *spatial, heads, _ = check_query("attn", attn)
    check_tensor("vectors", vectors, like=attn, any_float=True)
    check_shape("vectors", vectors, (batch, *spatial, heads, "channels"))
    near = neighborhood(spatial, attn.device, kernel_size, **window)
    check_shape("attn", attn, (batch, *spatial, heads, near.positions.shape[1]))
    result = torch.promote_types(attn.dtype, vectors.dtype)
    compute = accumulator(result)
    channels = vectors.shape[-1]

    # [queries, taps, batch, heads]: the position of a tap's key is the index of the sum.
    by_tap = attn.to(compute).flatten(1, -3).permute(1, 3, 0, 2)
    by_tap = by_tap.masked_fill(~near.attended[:, :, None, None], 0)
    of_query = vectors.to(compute).flatten(1, -3).transpose(0, 1)[:, None]
    terms = (by_tap[..., None] * of_query).flatten(0, 1).flatten(1)
    positions = math.prod(spatial)
    sums = terms.new_zeros(positions, batch * heads * channels)
    sums = sums.index_add(0, near.positions.flatten(), terms)
    sums = sums.reshape(positions, batch, heads, channels).transpose(0, 1)
    return sums.reshape(batch, *spatial, heads, channels).to(result)


def rpb_sum(d_logits: Tensor, kernel_size: PerAxis, **window: Any) -> Tensor:
    """Return the sum of d_logits over all queries, for each relative position of a key.

    Args:
        d_logits: `[batch, *spatial, heads, prod(kernel_size)]`, any float dtype; entries of taps
            without a key are ignored.
        kernel_size, and window: stride, dilation and is_causal, as for `neighborhood_attention`.

    Returns:
        `[heads, 2*K0-1, ...]` in float32, or float64 for float64 d_logits.

    Raises:
        ArgumentError, ArgumentTypeError: as for `neighborhood_attention`.
    """
    batch, *spatial, heads, _ = check_query("d_logits", d_logits)
    near = neighborhood(spatial, d_logits.device, kernel_size, **window)
    check_shape("d_logits", d_logits, (batch, *spatial, heads, near.positions.shape[1]))
    compute = accumulator(d_logits.dtype)
    # [queries, taps, heads]: the offset of a tap's key is the index of the sum.
    by_tap = d_logits.to(compute).flatten(1, -3).sum(0).transpose(1, 2)
    by_tap = by_tap.masked_fill(~near.attended[:, :, None], 0)
    offsets = [2 * size - 1 for size in near.kernel_size]
    sums = by_tap.new_zeros(math.prod(offsets), heads)
    sums = sums.index_add(0, near.bias.flatten(), by_tap.flatten(0, 1))
    return sums.transpose(0, 1).reshape(heads, *offsets)


def of_group(of_heads: Tensor, heads_kv: int) -> Tensor:
    """Return `[..., heads, n]` summed over heads that share a key, as `[..., heads_kv, n]`.

    A sum is in float32, or float64 for a float64 tensor; without one, of_heads is returned.
    """
    heads = of_heads.shape[-2]
    if heads == heads_kv:
        return of_heads
    by_group = of_heads.unflatten(-2, (heads_kv, heads // heads_kv))
    return by_group.sum(-2, dtype=accumulator(of_heads.dtype))
