"""FLOP counts for `torch.utils.flop_counter`: two for each multiply-add of a full window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from natc.ops.library import operators


def _products(leading: Sequence[int], kernel_size: Sequence[int], channels: int) -> int:
    """Return the FLOPs of products over `channels` at every tap; leading: batch, map and heads."""
    return 2 * math.prod(leading) * math.prod(kernel_size) * channels


@register_flop_formula([operators.forward, operators.forward_lse])
def _(query: Any, key: Any, value: Any, rpb: Any, kernel_size: Any, *_: Any, **__: Any) -> int:
    return _products(query[:-1], kernel_size, query[-1] + value[-1])


@register_flop_formula([operators.forward_packed, operators.forward_lse_packed])
def _(qkv: Any, rpb: Any, kernel_size: Any, *_: Any, **__: Any) -> int:
    return _products((*qkv[:-3], qkv[-2]), kernel_size, 2 * qkv[-1])


@register_flop_formula(operators.backward)
def _(
    d_output: Any,
    d_lse: Any,
    query: Any,
    key: Any,
    value: Any,
    rpb: Any,
    output: Any,
    lse: Any,
    wanted: Any,
    kernel_size: Any,
    *_: Any,
    **__: Any,
) -> int:
    return _backward_flops(query, value, wanted, kernel_size)


@register_flop_formula(operators.backward_packed)
def _(
    d_output: Any,
    d_lse: Any,
    qkv: Any,
    rpb: Any,
    output: Any,
    lse: Any,
    wanted: Any,
    kernel_size: Any,
    *_: Any,
    **__: Any,
) -> int:
    part = (*qkv[:-3], *qkv[-2:])
    return _backward_flops(part, part, [wanted[0]] * 3 + [wanted[1]], kernel_size)


def _backward_flops(query: Any, value: Any, wanted: Sequence[bool], kernel_size: Any) -> int:
    """Return the FLOPs of some of the gradients of query, key, value and rpb."""
    # The recomputed query key^T; a product for each of d_query, d_key and d_value; and
    # d_output value^T, unless d_value alone is wanted.
    channels = query[-1] * (1 + wanted[0] + wanted[1]) + value[-1] * wanted[2]
    if wanted[0] or wanted[1] or wanted[3]:
        channels += value[-1]
    return _products(query[:-1], kernel_size, channels)


@register_flop_formula(operators.qk)
def _(query: Any, key: Any, rpb: Any, fill: Any, kernel_size: Any, *_: Any, **__: Any) -> int:
    return _products(query[:-1], kernel_size, query[-1])


@register_flop_formula([operators.av, operators.inverse_av])
def _(attn: Any, vectors: Any, kernel_size: Any, *_: Any, **__: Any) -> int:
    return _products(attn[:-1], kernel_size, vectors[-1])
