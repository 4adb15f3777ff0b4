"""Fused neighborhood attention of rank 1, 2 and 3, heads-last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast, overload

from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError
from natc.functional import arguments, tokens
from natc.functional.merge import merge
from natc.ops import run_forward, run_forward_lse

PerAxis = int | Sequence[int]
Flags = bool | Sequence[bool]
_LAYOUT = "[batch, {}, heads, head_dim]"


class _Attention(Protocol):
    """The signature of this module's functions; the type of the result depends on return_lse."""

    @overload
    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, kernel_size: PerAxis, *,
        stride: PerAxis = ..., dilation: PerAxis = ..., is_causal: Flags = ...,
        scale: float | None = ..., softcap: float | None = ..., rpb: Tensor | None = ...,
        additional_keys: Tensor | None = ..., additional_values: Tensor | None = ...,
        return_lse: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, kernel_size: PerAxis, *,
        stride: PerAxis = ..., dilation: PerAxis = ..., is_causal: Flags = ...,
        scale: float | None = ..., softcap: float | None = ..., rpb: Tensor | None = ...,
        additional_keys: Tensor | None = ..., additional_values: Tensor | None = ...,
        return_lse: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @overload
    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, kernel_size: PerAxis, *,
        stride: PerAxis = ..., dilation: PerAxis = ..., is_causal: Flags = ...,
        scale: float | None = ..., softcap: float | None = ..., rpb: Tensor | None = ...,
        additional_keys: Tensor | None = ..., additional_values: Tensor | None = ...,
        return_lse: bool,
    ) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def _typed(function: Any) -> _Attention:
    return cast(_Attention, function)


@_typed
def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    softcap: float | None = None,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **unsupported: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return neighborhood attention, softmax(scale * query key^T + rpb) value in a window.

    Every query attends to the kernel_size keys around it; at a border the window shifts inwards
    and keeps its size. A window as large as the map is plain self-attention. One, two or three
    spatial axes, as the query has (`na1d`, `na2d` and `na3d` insist on theirs).

    A call that no compiled kernel covers runs on `natc.reference` with one NatcFallbackWarning,
    and so do its gradients. Gradients of gradients, forward-mode derivatives, and float64 on CUDA
    always run on the reference. Under autocast query, key, value and additional tokens are cast
    to its dtype, rpb is not.

    Args:
        query: `[B, *S, heads, head_dim]`; float32, float16, bfloat16 or float64. Any strides and
            alignment: a tensor that a kernel cannot read in place is copied. Any axis but the
            last may be empty.
        key: `[B, *S, heads_kv, head_dim]`, dtype and device of query. heads_kv divides heads:
            head h of the query uses head h // (heads / heads_kv) of key and value.
        value: `[B, *S, heads_kv, value_dim]`, dtype and device of query.
        kernel_size: keys per axis, >= 1: one integer, or one for each axis.
        stride: this many queries in a row share a window, 1 to kernel_size.
        dilation: distance between neighbors, >= 1.
        is_causal: a query attends to no key after itself on that axis.
        scale: factor of the dot products, finite; None means head_dim ** -0.5.
        softcap: c, 1e-30 to 1e30: a logit x becomes c * tanh(x / c); None for no cap.
        rpb: relative positional bias, `[heads, 2*K0-1, ...]`, any float dtype: added at the
            offset of key from query; itself not scaled.
        additional_keys: `[B, tokens, heads_kv, head_dim]`: every query attends to these too; rpb
            does not apply. Goes together with additional_values.
        additional_values: `[B, tokens, heads_kv, value_dim]`.
        return_lse: also return the natural log of the softmax's denominator.
        unsupported: arguments that other attention functions have, such as `attn_mask`. They
            are refused; the error names natc's replacement.

    Returns:
        output `[B, *S, heads, value_dim]` in the dtype of query, or (output, lse) with lse
        `[B, *S, heads]` in float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a shape, device or number that is not allowed (a ValueError).
        ArgumentTypeError: a type, dtype or layout that is not allowed (a TypeError).
        LibraryError: the kernel's library is not the file that its manifest vouches for.
        NotCoveredError: no kernel covers the call and NATC_STRICT is set.
    """
    if unsupported:
        arguments.refuse(unsupported)
    if not isinstance(query, Tensor):
        raise ArgumentTypeError(f"query is a {type(query).__name__}; it must be a torch.Tensor.")
    rank = query.ndim - 3
    if not 1 <= rank <= 3:
        raise ArgumentError(
            f"query has {query.ndim} axes, shape {list(query.shape)}; it must have 4, 5 or 6: "
            "[batch, 1 to 3 spatial axes, heads, head_dim]."
        )
    options = (kernel_size, stride, dilation, is_causal, scale)
    return _attend(
        rank,
        query,
        key,
        value,
        options,
        softcap,
        rpb,
        additional_keys,
        additional_values,
        return_lse,
    )


@_typed
def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    softcap: float | None = None,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **unsupported: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return 1-D neighborhood attention: query `[B, length, heads, head_dim]`.

    Everything else is as for `neighborhood_attention`.
    """
    if unsupported:
        arguments.refuse(unsupported)
    options = (kernel_size, stride, dilation, is_causal, scale)
    return _attend(
        1, query, key, value, options, softcap, rpb, additional_keys, additional_values, return_lse
    )


@_typed
def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    softcap: float | None = None,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **unsupported: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return 2-D neighborhood attention: query `[B, height, width, heads, head_dim]`.

    Everything else is as for `neighborhood_attention`.
    """
    if unsupported:
        arguments.refuse(unsupported)
    options = (kernel_size, stride, dilation, is_causal, scale)
    return _attend(
        2, query, key, value, options, softcap, rpb, additional_keys, additional_values, return_lse
    )


@_typed
def na3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    softcap: float | None = None,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **unsupported: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return 3-D neighborhood attention: query `[B, depth, height, width, heads, head_dim]`.

    Everything else is as for `neighborhood_attention`.
    """
    if unsupported:
        arguments.refuse(unsupported)
    options = (kernel_size, stride, dilation, is_causal, scale)
    return _attend(
        3, query, key, value, options, softcap, rpb, additional_keys, additional_values, return_lse
    )


def _attend(
    rank: int,
    query: Any,
    key: Any,
    value: Any,
    unchecked: Any,
    softcap: Any,
    rpb: Any,
    additional_keys: Any,
    additional_values: Any,
    return_lse: bool,
) -> Any:
    """Check the arguments and return attention; unchecked: see `arguments.options`."""
    has_tokens = additional_keys is not None or additional_values is not None
    if has_tokens:
        query, key, value, additional_keys, additional_values = arguments.tensors(
            ("query", query),
            ("key", key),
            ("value", value),
            *tokens.both(additional_keys, additional_values),
        )
    elif not arguments.fit(query, key, value):
        query, key, value = arguments.tensors(("query", query), ("key", key), ("value", value))
    shape = query.shape
    if len(shape) != rank + 3 or shape[-1] == 0:
        arguments.axes("query", query, rank, _LAYOUT)
    if key.shape != shape or value.shape != shape:
        _check_keys(query, key, value)
    options = arguments.options(rank, shape[-1], unchecked, softcap)
    if rpb is not None:
        rpb = arguments.bias(rpb, query, shape[-2], options.kernel_size)
    if not has_tokens:
        run = run_forward_lse if return_lse else run_forward
        return run(query, key, value, rpb, options)
    tokens.check(key, value, additional_keys, additional_values)
    outputs, lses = zip(
        run_forward_lse(query, key, value, rpb, options),
        tokens.attend(query, additional_keys, additional_values, options),
    )
    output, lse = merge(outputs, lses, query.dtype)
    return (output, lse) if return_lse else output


def _check_keys(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ArgumentError unless the shapes of key and value fit query."""
    *leading, heads, head_dim = query.shape
    because = f"as query has shape {list(query.shape)}"
    arguments.shape("key", key, (*leading, "heads_kv", head_dim), because)
    arguments.divides("key", key.shape[-2], heads)
    because = f"as key has shape {list(key.shape)}"
    arguments.shape("value", value, (*key.shape[:-1], "value_dim"), because)
    if value.shape[-1] == 0:
        raise ArgumentError(
            f"value has shape {list(value.shape)}; its last axis, value_dim, must be at least 1."
        )
