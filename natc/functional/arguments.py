"""Checks of the public functions' arguments.

Each check returns the argument as operators take it, or raises an error that names it. A call
whose arguments are right pays only for the comparisons: messages are built when one fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, is_autocast_enabled

from natc.dispatch.call import Options
from natc.errors import ArgumentError, ArgumentTypeError
from natc.reference.layout import accumulator
from natc.reference.validate import FLOATS, check_dense, check_device, check_dtype

_STRIDED = torch.strided
_SPATIAL = {1: "length", 2: "height, width", 3: "depth, height, width"}
_ENTRIES = {1: "one entry", 2: "2 entries", 3: "3 entries"}


def fit(query: Any, key: Any, value: Any) -> bool:
    """Return whether `tensors` would return query, key and value unchanged; a fast check."""
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        return False
    dtype, device = query.dtype, query.device
    kind = device.type
    return (
        dtype in FLOATS
        and key.dtype is dtype
        and value.dtype is dtype
        and key.device == device
        and value.device == device
        and query.layout is _STRIDED
        and key.layout is _STRIDED
        and value.layout is _STRIDED
        and not (query.is_nested or key.is_nested or value.is_nested)
        # Meta has no autocast, and asking raises.
        and (kind == "meta" or not is_autocast_enabled(kind))
    )


def tensors(*named: tuple[str, Any]) -> tuple[Tensor, ...]:
    """Return the named tensors, checked and cast as autocast wants.

    All must be dense and have the dtype and device of the first.
    """
    for name, value in named:
        if not isinstance(value, Tensor) or value.layout is not _STRIDED or value.is_nested:
            check_dense(name, value)
    values: tuple[Tensor, ...] = tuple(value for _, value in named)
    device = values[0].device
    kind = device.type
    if kind != "meta" and is_autocast_enabled(kind):
        values = _autocast(kind, values)
    dtype = values[0].dtype
    if dtype not in FLOATS:
        check_dtype(named[0][0], values[0])
    for value in values:
        if value.dtype is not dtype or value.device != device:
            _check_same([name for name, _ in named], values)
    return values


def _autocast(kind: str, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return values cast to the dtype of autocast, except float64 and integer tensors."""
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        value.to(dtype)
        if value.is_floating_point() and value.dtype is not torch.float64
        else value
        for value in values
    )


def options(
    rank: int, head_dim: int, unchecked: tuple[Any, Any, Any, Any, Any], softcap: Any = None
) -> Options:
    """Return the options, checked: one entry for each axis, and a scale that is a number.

    unchecked: kernel_size, stride, dilation, is_causal and scale as the caller passed them, and so
    is softcap.
    """
    kernel_size, stride, dilation, is_causal, scale = unchecked
    scale = head_dim**-0.5 if scale is None else scale_of(scale, head_dim)
    cap = 0.0 if softcap is None else _cap_of(softcap)
    if (
        type(kernel_size) is int
        and type(stride) is int
        and type(dilation) is int
        and type(is_causal) is bool
        and 1 <= stride <= kernel_size
        and dilation >= 1
    ):  # The common case, checked fast.
        fields = (
            (kernel_size,) * rank, (stride,) * rank, (dilation,) * rank, (is_causal,) * rank,
            scale, cap,
        )  # fmt: skip
        # As Options(*fields), in less time.
        return tuple.__new__(Options, fields)
    sizes = _per_axis("kernel_size", kernel_size, rank, at_least=1)
    strides = _per_axis("stride", stride, rank, at_least=1)
    dilations = _per_axis("dilation", dilation, rank, at_least=1)
    if max(strides) > min(sizes) and any(s > k for s, k in zip(strides, sizes)):
        raise ArgumentError(
            f"stride is {stride!r}; it must not exceed kernel_size, which is {kernel_size!r}."
        )
    causal = (is_causal,) * rank if isinstance(is_causal, bool) else _flags(is_causal, rank)
    return Options(sizes, strides, dilations, causal, scale, cap)


def _per_axis(name: str, value: Any, rank: int, *, at_least: int) -> tuple[int, ...]:
    """Return an option as one integer for each axis."""
    # Copy a list: the caller may change it before backward runs.
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    for entry in entries:
        if type(entry) is not int:
            entries = _integers(name, value, entries, rank)
            break
    if len(entries) != rank:
        _refuse_number(name, value, rank)
    if min(entries) < at_least:
        raise ArgumentError(f"{name} is {value!r}; it must be at least {at_least}.")
    return entries


def _integers(name: str, value: Any, entries: tuple[Any, ...], rank: int) -> tuple[Any, ...]:
    """Return entries as plain integers; symbolic integers, as in a trace, stay symbolic."""
    if not all(map(_is_integer, entries)):
        raise ArgumentTypeError(
            f"{name} is {value!r}; it must be an integer, or one for each axis: "
            f"({_SPATIAL[rank]})."
        )
    return tuple(n if isinstance(n, torch.SymInt) else int(n) for n in entries)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _flags(value: Any, rank: int) -> tuple[bool, ...]:
    """Return is_causal, if it is a sequence, as one flag for each axis."""
    if not isinstance(value, (tuple, list)) or not all(isinstance(flag, bool) for flag in value):
        raise ArgumentTypeError(
            f"is_causal is {value!r}; it must be True or False, or a flag for each axis: "
            f"({_SPATIAL[rank]})."
        )
    if len(value) != rank:
        _refuse_number("is_causal", value, rank)
    return tuple(value)


def scale_of(scale: Any, head_dim: int) -> float:
    """Return `scale`, checked, as a float; for None head_dim ** -0.5."""
    if scale is None:
        return head_dim**-0.5
    # Not `isfinite`, which torch.compile does not trace where a scale is dynamic.
    if type(scale) is float and -math.inf < scale < math.inf:
        return scale
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ArgumentTypeError(f"scale is {scale!r}; it must be a number or None.")
    if not -math.inf < scale < math.inf:
        raise ArgumentError(f"scale is {scale!r}; it must be finite.")
    return float(scale)


def _cap_of(softcap: Any) -> float:
    """Return softcap, checked, as a float."""
    if isinstance(softcap, bool) or not isinstance(softcap, (int, float)):
        raise ArgumentTypeError(f"softcap is {softcap!r}; it must be a number or None.")
    if not 1e-30 <= softcap <= 1e30:  # float32 holds these, and their reciprocals
        raise ArgumentError(f"softcap is {softcap!r}; it must be 1e-30 to 1e30, or None.")
    return float(softcap)


def bias(rpb: Any, query: Tensor, heads: int, kernel_size: Sequence[int]) -> Tensor:
    """Return rpb, checked, in the dtype in which operators take it: the accumulator's."""
    check_dense("rpb", rpb)
    check_dtype("rpb", rpb)
    check_device("rpb", rpb, "query", query)
    shape = (heads, *[2 * size - 1 for size in kernel_size])
    if rpb.shape != shape:
        axes = ", ".join(f"2*K{axis}-1" for axis in range(len(kernel_size)))
        raise ArgumentError(
            f"rpb has shape {list(rpb.shape)}; for {heads} heads and this kernel_size it must be "
            f"[heads, {axes}] = {list(shape)}."
        )
    dtype = accumulator(query.dtype)
    return rpb if rpb.dtype is dtype else rpb.to(dtype)


def axes(name: str, tensor: Tensor, rank: int, layout: str, extra: int = 0) -> None:
    """Raise ArgumentError unless a tensor has the axes of `layout`, the last of them not empty.

    layout: for the message, with {} for the spatial axes. extra: number of axes besides batch,
    spatial axes, heads and channels.
    """
    shape, number = tensor.shape, rank + 3 + extra
    if len(shape) == number and shape[-1]:
        return
    layout = layout.format(_SPATIAL[rank])
    if len(shape) != number:
        raise ArgumentError(
            f"{name} has {len(shape)} axes, shape {list(shape)}; it must have {number}: {layout}."
        )
    last = layout[:-1].split(", ")[-1]
    raise ArgumentError(f"{name} has shape {list(shape)}, {layout}; {last} must be at least 1.")


def shape(name: str, tensor: Tensor, expected: Sequence[int | str], because: str) -> None:
    """Raise ArgumentError unless a tensor has the expected shape; a word stands for any length."""
    actual = tensor.shape
    if len(actual) != len(expected) or any(
        length != size for length, size in zip(expected, actual) if not isinstance(length, str)
    ):
        raise ArgumentError(
            f"{name} has shape {list(actual)}; it must be [{', '.join(map(str, expected))}], "
            f"{because}."
        )


def divides(name: str, heads_kv: int, heads: int, of: str = "query") -> None:
    """Raise ArgumentError unless the heads_kv of tensor `name` divide the heads of tensor `of`."""
    # Without heads the result is empty, whatever heads_kv is.
    if heads and (heads_kv < 1 or heads % heads_kv):
        raise ArgumentError(
            f"{name} has {heads_kv} heads; their number must divide the {heads} heads of {of}."
        )


def _check_same(names: Sequence[str], values: Sequence[Tensor]) -> None:
    """Raise unless all values have the dtype and the device of the first."""
    first_name, first = names[0], values[0]
    for name, value in zip(names, values):
        if value.dtype is not first.dtype:
            raise ArgumentTypeError(
                f"{name} has dtype {value.dtype}; it must be {first.dtype}, as {first_name} is."
            )
    for name, value in zip(names, values):
        check_device(name, value, first_name, first)


def _refuse_number(name: str, value: Any, rank: int) -> NoReturn:
    raise ArgumentError(f"{name} is {value!r}; it must have {_ENTRIES[rank]}, one per axis.")


_IN_STEPS = "For other {}, apply them between na2d_qk, softmax and na2d_av of natc.functional."
_MASK = (
    "kernel_size, stride, dilation and is_causal decide which keys a query attends to. "
    + _IN_STEPS.format("masks")
)
_DROPOUT = "Drop out probabilities between na2d_qk, softmax and na2d_av of natc.functional."
_PACKED = "Make one call per sequence, and put sequences of the same length into one batch."
_INSTEAD = {
    "mask": _MASK,
    "attn_mask": _MASK,
    "key_padding_mask": _MASK,
    "attn_bias": "rpb adds a bias for each offset of key from query. "
    + _IN_STEPS.format("biases"),
    "dropout": _DROPOUT,
    "dropout_p": _DROPOUT,
    "cu_seqlens": _PACKED,
    "cu_seqlens_q": _PACKED,
    "cu_seqlens_k": _PACKED,
    "causal": "Use is_causal.",
    "softmax_scale": "Use scale.",
    "softcap": "natc.na1d, na2d, na3d and neighborhood_attention have it.",
    "enable_gqa": "key and value may have fewer heads than query without it.",
    "backend": "natc chooses the kernel. The functions of natc.compat.get_kernel accept backend.",
}


def refuse(unsupported: Mapping[str, Any]) -> NoReturn:
    """Raise ArgumentTypeError for the first of `unsupported`, and say what natc offers instead."""
    name = next(iter(unsupported))
    instead = _INSTEAD.get(name, "Its arguments are listed by help(natc.neighborhood_attention).")
    raise ArgumentTypeError(f"natc's attention has no argument {name!r}. {instead}")
