"""Neighborhood attention in plain PyTorch: slow, short, any device; what every kernel must match.

Every tensor is heads-last: `[batch, *spatial, heads, channels]` with one, two or three spatial
axes. Keys and values are gathered, one copy per query and tap, so memory grows with
prod(spatial) * prod(kernel_size).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError
from natc.window import Arithmetic, key_position, rpb_index, window

PerAxis = int | Sequence[int]
PerAxisFlag = bool | Sequence[bool]


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    dilation: PerAxis = 1,
    stride: PerAxis = 1,
    is_causal: PerAxisFlag = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return softmax(scale * query key^T + rpb) value over the neighborhood of each query.

    Differentiable, to any order, in every tensor and through both results. 16-bit inputs are
    computed in float32. Which keys form a neighborhood is said in `natc.window`.

    Args:
        query: `[batch, *spatial, heads, head_dim]`; float16, bfloat16, float32 or float64.
        key: `[batch, *spatial, heads_kv, head_dim]`, dtype of query. heads_kv divides heads, and
            query head h uses key head h // (heads / heads_kv).
        value: `[batch, *spatial, heads_kv, value_dim]`, dtype of query.
        kernel_size: keys per axis, >= 1; one int, or one for each axis. More than the axis has is
            no error: a query then attends to its whole dilation group.
        dilation: distance between neighbors, >= 1.
        stride: this many queries in a row share a window, 1 to kernel_size.
        is_causal: a query attends to no key after itself on that axis.
        scale: factor of the dot products; None means head_dim ** -0.5.
        rpb: `[heads, 2*K0-1, ...]`, any float dtype: added to the scaled dot products at the
            offset of key from query; itself not scaled.
        additional_keys: `[batch, tokens, heads_kv, head_dim]`: every query attends to these too.
        additional_values: `[batch, tokens, heads_kv, value_dim]`.
        return_lse: also return the natural log of the softmax's denominator.

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
    logits = neighborhood_logits(
        query,
        key,
        kernel_size,
        dilation=dilation,
        stride=stride,
        is_causal=is_causal,
        scale=scale,
        rpb=rpb,
        additional_keys=additional_keys,
    )
    _check_tensor("value", value, like=query)
    if value.shape[:-1] != key.shape[:-1]:
        raise ArgumentError(
            f"value has shape {tuple(value.shape)}; all but its last axis must be those of key, "
            f"which has shape {tuple(key.shape)}."
        )
    if additional_keys is not None and additional_values is not None:
        _check_tensor("additional_values", additional_values, like=query)
        _check_tokens(
            "additional_values",
            additional_values,
            key,
            channels=value.shape[-1],
            tokens=additional_keys.shape[1],
        )
    output = neighborhood_sum(
        logits.softmax(-1),
        value,
        kernel_size,
        dilation=dilation,
        stride=stride,
        is_causal=is_causal,
        additional_values=additional_values,
    ).to(query.dtype)
    return (output, logits.logsumexp(-1)) if return_lse else output


def neighborhood_logits(
    query: Tensor,
    key: Tensor,
    kernel_size: PerAxis,
    *,
    dilation: PerAxis = 1,
    stride: PerAxis = 1,
    is_causal: PerAxisFlag = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """Return what the softmax is taken of: scale * query key^T + rpb, one entry per tap.

    Args and Raises: as for `neighborhood_attention`.

    Returns:
        `[batch, *spatial, heads, prod(kernel_size) + tokens]` in float32 (float64 for float64
        inputs): the taps in row-major order, -inf where a tap has no key, then the additional
        tokens, to which rpb does not apply.
    """
    batch, *spatial, heads, head_dim = _check_query("query", query)
    _check_tensor("key", key, like=query)
    heads_kv = _check_keys("key", key, (batch, *spatial), heads, channels=head_dim)
    near = _neighborhood(spatial, kernel_size, dilation, stride, is_causal, query.device)
    compute = torch.promote_types(query.dtype, torch.float32)
    if scale is None:
        scale = head_dim**-0.5
    elif isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ArgumentTypeError(f"scale is {scale!r}; it must be a number or None.")

    grouped = _grouped(query.to(compute) * scale, heads_kv)
    gathered = _heads_first(key, compute)[:, :, near.positions]
    logits = _matmul(grouped, gathered.transpose(-1, -2))
    if rpb is not None:
        _check_tensor("rpb", rpb, like=query, any_float=True)
        _check_shape("rpb", rpb, (heads, *(2 * size - 1 for size in near.kernel_size)))
        bias = rpb.to(compute).flatten(1)[:, near.bias]
        logits = logits + bias.unflatten(0, (heads_kv, -1)).transpose(1, 2)
    logits = logits.masked_fill(~near.attended[:, None, :], -math.inf)
    if additional_keys is not None:
        _check_tensor("additional_keys", additional_keys, like=query)
        _check_tokens("additional_keys", additional_keys, key, channels=head_dim)
        extra = _heads_first(additional_keys, compute)[:, :, None]
        logits = torch.cat((logits, _matmul(grouped, extra.transpose(-1, -2))), dim=-1)
    return _heads_last(logits, spatial)


def neighborhood_sum(
    weights: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    dilation: PerAxis = 1,
    stride: PerAxis = 1,
    is_causal: PerAxisFlag = False,
    additional_values: Tensor | None = None,
) -> Tensor:
    """Return the sum of the values in each neighborhood, each times its weight.

    Args:
        weights: `[batch, *spatial, heads, prod(kernel_size) + tokens]`, any float dtype, in the
            order of `neighborhood_logits`. The weight of a tap that has no key is ignored.
        value, kernel_size, dilation, stride, is_causal, additional_values: as for
            `neighborhood_attention`.

    Returns:
        `[batch, *spatial, heads, value_dim]` in the wider of the dtypes of weights and value.

    Raises:
        ArgumentError, ArgumentTypeError: as for `neighborhood_attention`.
    """
    batch, *spatial, heads, entries = _check_query("weights", weights)
    _check_tensor("value", value, like=weights, any_float=True)
    heads_kv = _check_keys("value", value, (batch, *spatial), heads, channels=None)
    near = _neighborhood(spatial, kernel_size, dilation, stride, is_causal, weights.device)
    result = torch.promote_types(weights.dtype, value.dtype)
    compute = torch.promote_types(result, torch.float32)
    taps = near.positions.shape[1]
    tokens = 0
    if additional_values is not None:
        _check_tensor("additional_values", additional_values, like=value)
        _check_tokens("additional_values", additional_values, value, channels=value.shape[-1])
        tokens = additional_values.shape[1]
    if entries != taps + tokens:
        raise ArgumentError(
            f"weights has {entries} entries in its last axis; it must have {taps + tokens}: "
            f"{taps} taps and {tokens} additional tokens."
        )

    grouped = _grouped(weights.to(compute), heads_kv)
    of_taps = grouped[..., :taps].masked_fill(~near.attended[:, None, :], 0)
    output = _matmul(of_taps, _heads_first(value, compute)[:, :, near.positions])
    if additional_values is not None:
        extra = _heads_first(additional_values, compute)[:, :, None]
        output = output + _matmul(grouped[..., taps:], extra)
    return _heads_last(output, spatial).to(result)


class _Neighborhood(NamedTuple):
    """Where the taps of all queries read; queries and taps flattened in row-major order."""

    kernel_size: tuple[int, ...]
    positions: Tensor  # int64 [queries, taps]: flattened position, valid for every tap
    bias: Tensor  # int64 [queries, taps]: index into the flattened rpb, valid for every tap
    attended: Tensor  # bool [queries, taps]: whether the tap has a key


def _neighborhood(
    spatial: Sequence[int],
    kernel_size: Any,
    dilation: Any,
    stride: Any,
    is_causal: Any,
    device: torch.device,
) -> _Neighborhood:
    rank = len(spatial)
    sizes = _per_axis("kernel_size", kernel_size, rank)
    dilations = _per_axis("dilation", dilation, rank)
    strides = _per_axis("stride", stride, rank)
    for one_stride, size in zip(strides, sizes, strict=True):
        if one_stride > size:
            raise ArgumentError(
                f"stride is {stride!r}; it must not exceed kernel_size, which is {kernel_size!r}."
            )
    causal = _per_axis("is_causal", is_causal, rank, flag=True)

    positions = bias = torch.zeros(1, 1, dtype=torch.int64, device=device)
    attended = torch.ones(1, 1, dtype=torch.bool, device=device)
    for length, size, step, one_stride, one_causal in zip(
        spatial, sizes, dilations, strides, causal, strict=True
    ):
        query = torch.arange(length, device=device)[:, None]
        tap = torch.arange(size, device=device)[None, :]
        found = window(
            query, length, size, step, stride=one_stride, is_causal=bool(one_causal), ops=TORCH
        )
        # A tap without a key reads the last one that has: finite, in bounds, then masked.
        read = TORCH.minimum(tap, found.count - 1)
        key, offset = key_position(found, read, step), rpb_index(found, read, size)
        positions = _product(operator.add, positions * length, key)
        bias = _product(operator.add, bias * (2 * size - 1), offset)
        attended = _product(operator.and_, attended, (tap < found.count).expand(length, size))
    return _Neighborhood(sizes, positions, bias, attended)


def _product(combine: Callable[[Tensor, Tensor], Tensor], outer: Tensor, inner: Tensor) -> Tensor:
    """Combine every query and tap of `outer` with every one of `inner`, both `[queries, taps]`."""
    return combine(outer[:, None, :, None], inner[None, :, None, :]).flatten(2).flatten(0, 1)


def _minimum(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return a.clamp(max=b)
    return b.clamp(max=a) if isinstance(b, Tensor) else min(a, b)


def _maximum(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return a.clamp(min=b)
    return b.clamp(min=a) if isinstance(b, Tensor) else max(a, b)


TORCH = Arithmetic(operator.floordiv, operator.mod, _minimum, _maximum)


def _heads_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, *spatial, heads, channels] -> [batch, heads, positions, channels]."""
    return tensor.to(dtype).flatten(1, -3).transpose(1, 2)


def _grouped(tensor: Tensor, heads_kv: int) -> Tensor:
    """[batch, *spatial, heads, n] -> [batch, heads_kv, queries, heads per kv head, n]."""
    return tensor.flatten(1, -3).unflatten(2, (heads_kv, -1)).transpose(1, 2)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    # Under autocast a product would silently be computed in 16 bits.
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _heads_last(tensor: Tensor, spatial: Sequence[int]) -> Tensor:
    """Undo `_grouped`."""
    return tensor.transpose(1, 2).flatten(2, 3).unflatten(1, list(spatial))


def _per_axis(name: str, given: Any, rank: int, *, flag: bool = False) -> tuple[int, ...]:
    """Return one integer >= 1, or one flag, for each axis."""
    kind = bool if flag else int
    entries = (given,) * rank if isinstance(given, (int, bool)) else given
    if not isinstance(entries, (tuple, list)) or any(type(entry) is not kind for entry in entries):
        what = "True or False" if flag else "an integer"
        raise ArgumentTypeError(f"{name} is {given!r}; it must be {what}, or one for each axis.")
    if len(entries) != rank:
        raise ArgumentError(f"{name} is {given!r}; it must have {rank} entries, one per axis.")
    if not flag and min(entries) < 1:
        raise ArgumentError(f"{name} is {given!r}; it must be at least 1.")
    return tuple(entries)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check_query(name: str, tensor: Tensor) -> tuple[int, ...]:
    _check_tensor(name, tensor, like=None)
    if not 4 <= tensor.ndim <= 6:
        raise ArgumentError(
            f"{name} has {tensor.ndim} axes; it must have 4, 5 or 6: "
            "[batch, 1 to 3 spatial axes, heads, channels]."
        )
    return tuple(tensor.shape)


def _check_tensor(name: str, tensor: Any, *, like: Tensor | None, any_float: bool = False) -> None:
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor.")
    if tensor.dtype not in _FLOATS:
        raise ArgumentTypeError(
            f"{name} has dtype {tensor.dtype}; it must be one of "
            f"{', '.join(str(dtype) for dtype in _FLOATS)}."
        )
    if like is None:
        return
    if not any_float and tensor.dtype != like.dtype:
        raise ArgumentTypeError(
            f"{name} has dtype {tensor.dtype}; it must be that of query, {like.dtype}."
        )
    if tensor.device != like.device:
        raise ArgumentError(
            f"{name} is on device {tensor.device}; it must be on that of query, {like.device}."
        )


def _check_keys(
    name: str, tensor: Tensor, leading: tuple[int, ...], heads: int, *, channels: int | None
) -> int:
    """Check `[*leading, heads_kv, channels]` and return heads_kv."""
    _check_shape(
        name, tensor, (*leading, "heads_kv", "channels" if channels is None else channels)
    )
    heads_kv = tensor.shape[-2]
    if heads_kv < 1 or heads % heads_kv:
        raise ArgumentError(
            f"{name} has {heads_kv} heads; their number must divide that of query, {heads}."
        )
    return heads_kv


def _check_tokens(
    name: str, tensor: Tensor, key: Tensor, *, channels: int, tokens: int | str = "tokens"
) -> None:
    """Check `[batch, tokens, heads_kv, channels]`, with the batch and heads_kv of key."""
    _check_shape(name, tensor, (key.shape[0], tokens, key.shape[-2], channels))


def _check_shape(name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
    """Check a shape in which a word stands for any length."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        isinstance(want, int) and got != want for got, want in zip(shape, expected, strict=True)
    ):
        raise ArgumentError(
            f"{name} has shape {list(shape)}; it must be [{', '.join(map(str, expected))}]."
        )
