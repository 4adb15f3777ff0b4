"""The gradients of the gradients, written out instead of derived by autograd.

Some transforms of torch.func cannot differentiate a graph that was built inside a backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from natc.reference.attention import (
    PerAxis,
    PerAxisFlag,
    neighborhood_logits,
    neighborhood_sum,
    slope_of,
)
from natc.reference.backward import attended_sum, of_group, rpb_sum, softmax


def neighborhood_second_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    d_output: Tensor,
    d_lse: Tensor | None,
    directions: Sequence[Tensor | None],
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: PerAxisFlag = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    **terms: Any,
) -> tuple[Tensor, ...]:
    """Return the gradients of `neighborhood_gradients` in its tensors.

    With a the logits, p their softmax, dp = d_output . value and ds = p * (dp - sum(p * dp) +
    d_lse), the sum of directions * gradients is sum(ds * c) + sum(p * e): c is the derivative of a
    in the directions of query, key and rpb, and e = d_output . direction of value. The function
    computes the derivative of that sum.

    Args:
        directions: gradients of d_query, d_key, d_value and d_rpb; None stands for zeros.
        query, key, value, kernel_size, d_output, d_lse, stride, dilation, is_causal, scale, rpb,
            terms: as for `neighborhood_gradients`, which raises the same errors.

    Returns:
        Gradients of d_output, d_lse, query, key, value and rpb, in the dtypes of these; without
        an rpb the last means nothing.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    where: dict[str, Any] = {"stride": stride, "dilation": dilation, "is_causal": is_causal}
    of_query, of_key, of_value, of_rpb = directions

    logits = neighborhood_logits(query, key, kernel_size, scale=scale, rpb=rpb, **where, **terms)
    compute = logits.dtype

    def dots(vectors: Tensor, keys: Tensor, factor: float, bias: Tensor | None = None) -> Tensor:
        """Return factor * vector . key + bias at each tap; 0 at taps without a key."""
        return neighborhood_logits(
            vectors, keys, kernel_size, scale=factor, rpb=bias, fill=0.0, **where
        )

    p = softmax(logits, d_output, d_lse)
    dp = dots(d_output, value, 1.0)
    centered = dp - (p * dp).sum(-1, keepdim=True)
    if d_lse is not None:
        centered = centered + d_lse.to(compute).unsqueeze(-1)
    ds = p * centered

    zero = query.new_zeros(()).expand_as(query)
    c = dots(zero if of_query is None else of_query, key, scale, of_rpb)
    if of_key is not None:
        c = c + dots(query, of_key, scale)
    # With a cap, c so far is the derivative of the logit before the cap.
    uncapped, slope = c, slope_of(logits, **terms)
    c = slope * c
    mean_c = (p * c).sum(-1, keepdim=True)
    to_p = centered * c - mean_c * dp
    if of_value is not None:
        to_p = to_p + dots(d_output, of_value, 1.0)
    to_dp = p * (c - mean_c)
    to_logits = p * (to_p - (p * to_p).sum(-1, keepdim=True))
    softcap = terms.get("softcap")
    if softcap:
        # The derivative of the slope 1 - (a / softcap)^2 in a is -2 a / softcap^2.
        finite = logits.masked_fill(logits.isneginf(), 0)
        to_logits = slope * (to_logits - ds * uncapped * (2 * finite / softcap**2))
        ds = ds * slope

    def at_queries(attn: Tensor, keys: Tensor) -> Tensor:
        return neighborhood_sum(attn, keys, kernel_size, **where)

    def at_keys(attn: Tensor, vectors: Tensor, like: Tensor) -> Tensor:
        of_heads = attended_sum(attn, vectors, kernel_size, **where)
        return of_group(of_heads, like.shape[-2])

    to_output = at_queries(to_dp, value)
    if of_value is not None:
        to_output = to_output + at_queries(p, of_value)
    to_query = at_queries(to_logits * scale, key)
    if of_key is not None:
        to_query = to_query + at_queries(ds * scale, of_key)
    to_key = at_keys(to_logits * scale, query, key)
    if of_query is not None:
        to_key = to_key + at_keys(ds * scale, of_query, key)
    return (
        to_output.to(d_output.dtype),
        mean_c.squeeze(-1),
        to_query.to(query.dtype),
        to_key.to(key.dtype),
        at_keys(to_dp, d_output, value).to(value.dtype),
        rpb_sum(to_logits, kernel_size, **where),
    )
