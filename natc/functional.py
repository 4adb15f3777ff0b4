"""`natc.na2d`: 2-D neighborhood attention with every argument checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, overload

import torch
from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError
from natc.ops import na2d_forward, na2d_forward_lse

_FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))
_LAYOUT = "[batch, height, width, heads, head_dim]"


@overload
def na2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int | Sequence[int], *,
    dilation: int | Sequence[int] = ..., stride: int | Sequence[int] = ...,
    is_causal: bool | Sequence[bool] = ..., scale: float | None = ...,
    rpb: Tensor | None = ..., return_lse: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def na2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int | Sequence[int], *,
    dilation: int | Sequence[int] = ..., stride: int | Sequence[int] = ...,
    is_causal: bool | Sequence[bool] = ..., scale: float | None = ...,
    rpb: Tensor | None = ..., return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def na2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int | Sequence[int], *,
    dilation: int | Sequence[int] = ..., stride: int | Sequence[int] = ...,
    is_causal: bool | Sequence[bool] = ..., scale: float | None = ...,
    rpb: Tensor | None = ..., return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return 2-D neighborhood attention, softmax(scale * query key^T + rpb) value in a window.

    Every query attends to the kernel_size keys around it; at a border the window shifts inwards
    and keeps its size. A window as large as the map is plain self-attention.

    A call that no compiled kernel covers runs on `natc.reference` with one NatcFallbackWarning.
    Gradients are exact and of any order, but are computed by the reference: there is no backward
    kernel yet. Under autocast query, key and value are cast to its dtype, rpb is not.

    Args:
        query, key, value: `[B, H, W, heads, head_dim]`, one shape, dtype and device; float32,
            float16, bfloat16, or float64 (which always runs on the reference). Any strides and
            alignment: what a kernel cannot read as it is, is copied. Any axis but head_dim may be
            empty.
        kernel_size: keys per axis, >= 2: one integer, or (height, width).
        dilation: distance between neighbors, >= 1: one integer, or one for each axis.
        stride: this many queries in a row share a window, 1 to kernel_size.
        is_causal: a query attends to no key after itself on that axis.
        scale: factor of the dot products, finite; None means head_dim ** -0.5.
        rpb: relative positional bias, `[heads, 2*K0-1, 2*K1-1]`, any float dtype: added at the
            offset of key from query; itself not scaled.
        return_lse: also return the natural log of the softmax's denominator.

    Returns:
        output `[B, H, W, heads, head_dim]` in the dtype of query, or (output, lse) with lse
        `[B, H, W, heads]` in float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a shape, device or number that is not allowed (a ValueError).
        ArgumentTypeError: a type, dtype or layout that is not allowed (a TypeError).
        LibraryError: the kernel's library is not the file that its manifest vouches for.
        NotCoveredError: no kernel covers the call and NATC_STRICT is set.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            _refuse_tensor(name, tensor)
    device = query.device
    device_type = device.type
    if device_type == "meta":
        raise ArgumentError("query is on device meta, which holds no data; it must be on another.")
    if torch.is_autocast_enabled(device_type):
        query, key, value = _autocast(device_type, query, key, value)
    dtype = query.dtype
    if dtype not in _FLOATS:
        _refuse_dtype("query", query)
    if key.dtype is not dtype or value.dtype is not dtype:
        _refuse_mixed("dtype", query, key, value)
    if key.device != device or value.device != device:
        _refuse_device(query, key, value)
    shape = query.shape
    if len(shape) != 5 or shape[4] == 0:
        _refuse_rank(query)
    if key.shape != shape or value.shape != shape:
        _refuse_mixed("shape", query, key, value)

    sizes = _pair("kernel_size", kernel_size, at_least=2)
    dilations = _pair("dilation", dilation, at_least=1)
    strides = _pair("stride", stride, at_least=1)
    if strides[0] > sizes[0] or strides[1] > sizes[1]:
        raise ArgumentError(
            f"stride is {stride!r}; it must not exceed kernel_size, which is {kernel_size!r}."
        )
    causal = (is_causal, is_causal) if isinstance(is_causal, bool) else _flags(is_causal)
    scale = shape[4] ** -0.5 if scale is None else _finite(scale)
    if rpb is not None:
        rpb = _bias(rpb, query, (shape[3], 2 * sizes[0] - 1, 2 * sizes[1] - 1))
    run = na2d_forward_lse if return_lse else na2d_forward
    result: Tensor | tuple[Tensor, Tensor] = run(
        query, key, value, rpb, sizes, dilations, strides, causal, scale
    )
    return result


def _pair(name: str, given: Any, *, at_least: int) -> Sequence[int]:
    """Return one integer for each axis."""
    if type(given) is int:
        pair: Sequence[int] = (given, given)
    elif _is_integer(given):
        pair = (given, given)
    elif isinstance(given, (tuple, list)) and all(_is_integer(entry) for entry in given):
        pair = given
        if len(pair) != 2:
            raise ArgumentError(f"{name} is {given!r}; it must have 2 entries, one per axis.")
    else:
        raise ArgumentTypeError(
            f"{name} is {given!r}; it must be an integer or two integers, (height, width)."
        )
    if pair[0] < at_least or pair[1] < at_least:
        raise ArgumentError(f"{name} is {given!r}; it must be at least {at_least}.")
    return pair


def _is_integer(given: Any) -> bool:
    return isinstance(given, (int, torch.SymInt)) and not isinstance(given, bool)


def _flags(given: Any) -> Sequence[bool]:
    if not isinstance(given, (tuple, list)) or not all(isinstance(flag, bool) for flag in given):
        raise ArgumentTypeError(
            f"is_causal is {given!r}; it must be True or False, or two of them, (height, width)."
        )
    if len(given) != 2:
        raise ArgumentError(f"is_causal is {given!r}; it must have 2 entries, one per axis.")
    return given


def _finite(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ArgumentTypeError(f"scale is {scale!r}; it must be a number or None.")
    if not math.isfinite(scale):
        raise ArgumentError(f"scale is {scale!r}; it must be finite.")
    return float(scale)


def _bias(rpb: Any, query: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return rpb, checked, in the dtype that the operators take it in."""
    if not isinstance(rpb, Tensor) or rpb.layout is not torch.strided:
        _refuse_tensor("rpb", rpb)
    if rpb.dtype not in _FLOATS:
        _refuse_dtype("rpb", rpb)
    if rpb.device != query.device:
        raise ArgumentError(
            f"rpb is on device {rpb.device}; it must be on that of query, {query.device}."
        )
    if rpb.shape != shape:
        raise ArgumentError(
            f"rpb has shape {list(rpb.shape)}; for {shape[0]} heads and this kernel_size it must "
            f"be [heads, 2*K0-1, 2*K1-1] = {list(shape)}."
        )
    wanted = torch.float64 if query.dtype is torch.float64 else torch.float32
    return rpb if rpb.dtype is wanted else rpb.to(wanted)


def _autocast(device_type: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast casts the operands of attention: all but float64 and integers."""
    wanted = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(wanted) if t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in tensors
    )


def _refuse_tensor(name: str, given: Any) -> NoReturn:
    if not isinstance(given, Tensor):
        raise ArgumentTypeError(f"{name} is a {type(given).__name__}; it must be a torch.Tensor.")
    raise ArgumentTypeError(
        f"{name} has layout {given.layout}; it must be dense, torch.strided: {name}.to_dense()."
    )


def _refuse_dtype(name: str, tensor: Tensor) -> NoReturn:
    raise ArgumentTypeError(
        f"{name} has dtype {tensor.dtype}; it must be torch.float32, torch.float16, "
        "torch.bfloat16 or torch.float64."
    )


def _refuse_device(query: Tensor, key: Tensor, value: Tensor) -> NoReturn:
    name, other = ("key", key) if key.device != query.device else ("value", value)
    raise ArgumentError(
        f"{name} is on device {other.device}; it must be on that of query, {query.device}."
    )


def _refuse_rank(query: Tensor) -> NoReturn:
    if query.ndim != 5:
        raise ArgumentError(
            f"query has {query.ndim} axes, shape {list(query.shape)}; it must have 5: {_LAYOUT}."
        )
    raise ArgumentError(
        f"query has shape {list(query.shape)}, {_LAYOUT}; head_dim must be at least 1."
    )


def _refuse_mixed(what: str, query: Tensor, key: Tensor, value: Tensor) -> NoReturn:
    name, other = ("value", value) if getattr(key, what) == getattr(query, what) else ("key", key)
    if what == "dtype":
        raise ArgumentTypeError(
            f"{name} has dtype {other.dtype}; it must be that of query, {query.dtype}."
        )
    raise ArgumentError(
        f"{name} has shape {list(other.shape)}; it must be that of query, {list(query.shape)}: "
        f"{_LAYOUT}."
    )
