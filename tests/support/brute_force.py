"""Neighborhood attention as loops over pairs of a query and a key, with gradients by hand.

NumPy in float64, nothing of `natc.reference`, no automatic differentiation: what kernels and the
reference are tested against. For small maps: time and memory grow with the number of pairs.
Every function takes an upstream gradient and then returns the gradient of each of its inputs too,
as `d_` and the input's name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.neighbors import Pairs, pairs

Array = NDArray[np.float64]
Results = dict[str, Array]


def qk(
    query: Array,
    key: Array,
    kernel_size: Sequence[int],
    *,
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float = 1.0,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    d_attn: Array | None = None,
) -> Results:
    """Return `attn`, scale * query key^T + rpb, and the gradients of query, key, rpb and tokens.

    Args:
        query: `[batch, heads, *spatial, head_dim]`.
        key: `[batch, heads_kv, *spatial, head_dim]`; query head h reads h // (heads / heads_kv).
        kernel_size, dilation, stride, is_causal: one for each axis.
        scale: factor of the dot products, not of rpb.
        rpb: `[heads, 2*K-1 of each axis]`.
        additional_keys: `[batch, heads_kv, tokens, head_dim]`.
        d_attn: gradient of attn; ignored at a tap without a key.

    Returns:
        attn `[batch, heads, *spatial, taps + tokens]`, -inf at a tap without a key.
    """
    ends = _pairs(query.shape[2:-1], kernel_size, dilation, stride, is_causal)
    tokens = 0 if additional_keys is None else additional_keys.shape[2]
    attn = np.full((*query.shape[:2], ends.positions, ends.taps + tokens), -np.inf)
    inputs: dict[str, Any] = {
        "query": query, "key": key, "rpb": rpb, "additional_keys": additional_keys
    }  # fmt: skip
    gradients = {name: np.zeros(a.shape) for name, a in inputs.items() if a is not None}
    upstream = None if d_attn is None else d_attn.reshape(attn.shape)

    for b, h, g in _heads(query, key):
        queries, keys = _rows(query[b, h]), _rows(key[b, g])
        logits = scale * (queries[ends.query] * keys[ends.key]).sum(-1)
        if rpb is not None:
            logits = logits + rpb[h].ravel()[ends.bias]
        attn[b, h, ends.query, ends.tap] = logits
        if additional_keys is not None:
            attn[b, h, :, ends.taps :] = scale * queries @ additional_keys[b, g].T
        if upstream is None:
            continue
        of_pairs = upstream[b, h, ends.query, ends.tap]
        of_tokens = upstream[b, h, :, ends.taps :]
        d_query, d_key = _rows(gradients["query"][b, h]), _rows(gradients["key"][b, g])
        np.add.at(d_query, ends.query, scale * of_pairs[:, None] * keys[ends.key])
        np.add.at(d_key, ends.key, scale * of_pairs[:, None] * queries[ends.query])
        if rpb is not None:
            np.add.at(gradients["rpb"][h].reshape(-1), ends.bias, of_pairs)
        if additional_keys is not None:
            d_query += scale * of_tokens @ additional_keys[b, g]
            gradients["additional_keys"][b, g] += scale * of_tokens.T @ queries
    results = {"attn": attn.reshape(*query.shape[:-1], attn.shape[-1])}
    return results if upstream is None else results | _prefixed(gradients)


def av(
    attn: Array,
    value: Array,
    kernel_size: Sequence[int],
    *,
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    additional_values: Array | None = None,
    d_output: Array | None = None,
) -> Results:
    """Return `output`, the sum of attn times value, and the gradients of attn, value and tokens.

    Args:
        attn: `[batch, heads, *spatial, taps + tokens]`; ignored at a tap without a key, where its
            gradient is 0.
        value: `[batch, heads_kv, *spatial, value_dim]`.
        additional_values: `[batch, heads_kv, tokens, value_dim]`.
        d_output: gradient of output, `[batch, heads, *spatial, value_dim]`.
        Others as for `qk`.
    """
    ends = _pairs(value.shape[2:-1], kernel_size, dilation, stride, is_causal)
    weights = attn.reshape(*attn.shape[:2], ends.positions, attn.shape[-1])
    output = np.zeros((*attn.shape[:-1], value.shape[-1]))
    inputs: dict[str, Any] = {"attn": attn, "value": value, "additional_values": additional_values}
    gradients = {name: np.zeros(a.shape) for name, a in inputs.items() if a is not None}
    d_attn = gradients["attn"].reshape(weights.shape)

    for b, h, g in _heads(attn, value):
        of_pairs, values = weights[b, h, ends.query, ends.tap], _rows(value[b, g])
        sums = _rows(output[b, h])
        np.add.at(sums, ends.query, of_pairs[:, None] * values[ends.key])
        if additional_values is not None:
            sums += weights[b, h, :, ends.taps :] @ additional_values[b, g]
        if d_output is None:
            continue
        upstream, d_value = _rows(d_output[b, h]), _rows(gradients["value"][b, g])
        d_attn[b, h, ends.query, ends.tap] = (
            upstream[ends.query] * values[ends.key]
        ).sum(-1)  # fmt: skip
        np.add.at(d_value, ends.key, of_pairs[:, None] * upstream[ends.query])
        if additional_values is not None:
            d_attn[b, h, :, ends.taps :] = upstream @ additional_values[b, g].T
            gradients["additional_values"][b, g] += weights[b, h, :, ends.taps :].T @ upstream
    return {"output": output} if d_output is None else {"output": output} | _prefixed(gradients)


def attention(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Sequence[int],
    *,
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    d_output: Array | None = None,
    d_lse: Array | None = None,
) -> Results:
    """Return `output` and `lse` of softmax(scale * query key^T + rpb) value, and all gradients.

    Args:
        query, key, value: `[batch, *spatial, heads or heads_kv, channels]`: heads last, here.
        additional_keys, additional_values: `[batch, tokens, heads_kv, channels]`.
        d_output: gradient of output, `[batch, *spatial, heads, value_dim]`; d_lse: of lse,
            `[batch, *spatial, heads]`, None for zero.
        Others as for `qk`.
    """
    where: dict[str, Any] = {"dilation": dilation, "stride": stride, "is_causal": is_causal}
    queries, keys = heads_first(query), heads_first(key)
    biases: dict[str, Any] = {
        "scale": scale, "rpb": rpb, "additional_keys": _optional(heads_first, additional_keys)
    }  # fmt: skip
    extra: dict[str, Any] = {"additional_values": _optional(heads_first, additional_values)}
    logits = qk(queries, keys, kernel_size, **where, **biases)["attn"]
    weights, lse = softmax(logits)
    upstream = _optional(heads_first, d_output)
    of_av = av(weights, heads_first(value), kernel_size, **where, **extra, d_output=upstream)
    results = {"output": heads_last(of_av["output"]), "lse": np.moveaxis(lse, 1, -1)}
    if upstream is None:
        return results
    # The gradient of a softmax; the gradient of a logsumexp is the softmax itself.
    d_weights = of_av.pop("d_attn")
    inner = (d_weights * weights).sum(-1, keepdims=True)
    d_logits = weights * (d_weights - inner)
    if d_lse is not None:
        d_logits = d_logits + weights * np.moveaxis(d_lse, -1, 1)[..., None]
    of_qk = qk(queries, keys, kernel_size, **where, **biases, d_attn=d_logits)
    gradients = {k: v for k, v in (of_qk | of_av).items() if k.startswith("d_")}
    return results | {k: v if k == "d_rpb" else heads_last(v) for k, v in gradients.items()}


def softmax(logits: Array) -> tuple[Array, Array]:
    """Return the softmax over the last axis, and the logarithm of its denominator.

    As torch.softmax and torch.logsumexp: the softmax of a row that holds +inf, or nothing but
    -inf, is NaN, and its logsumexp is infinite.
    """
    with np.errstate(invalid="ignore"):
        peak = logits.max(-1, keepdims=True)
        terms = np.exp(logits - peak)
        total = terms.sum(-1, keepdims=True)
        lse = np.where(np.isinf(peak), peak, peak + np.log(total))
        return terms / total, lse[..., 0]


@functools.lru_cache(maxsize=8)
def _cached_pairs(*axes: tuple[Any, ...]) -> Pairs:
    return pairs(*axes)


def _pairs(*axes: Sequence[Any]) -> Pairs:
    return _cached_pairs(*(tuple(axis) for axis in axes))


def _heads(query: Array, key: Array) -> Iterator[tuple[int, int, int]]:
    """Yield every batch entry and head of the query, and the head of the key that it reads."""
    group = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            yield b, h, h // group


def _rows(one_head: Array) -> Array:
    """[*spatial, channels] -> [positions, channels]; of a compact array, the same memory."""
    return one_head.reshape(-1, one_head.shape[-1])


def heads_first(array: Array) -> Array:
    """[batch, ..., heads, channels] -> [batch, heads, ..., channels], compact."""
    return np.ascontiguousarray(np.moveaxis(array, -2, 1))


def heads_last(array: Array) -> Array:
    """[batch, heads, ..., channels] -> [batch, ..., heads, channels]."""
    return np.moveaxis(array, 1, -2)


def _optional(function: Callable[[Array], Array], array: Array | None) -> Array | None:
    return None if array is None else function(array)


def _prefixed(gradients: Results) -> Results:
    return {f"d_{name}": gradient for name, gradient in gradients.items()}
