"""Checks of arguments: what passes is what the operators take, what does not is named.

Only what a good call needs runs on its way; messages are put together where something is wrong.
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

_FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))
_STRIDED = torch.strided
_SPATIAL = {1: "length", 2: "height, width", 3: "depth, height, width"}
_ENTRIES = {1: "one entry", 2: "2 entries", 3: "3 entries"}


def fit(query: Any, key: Any, value: Any) -> bool:
    """Return whether `tensors` would return these as they are: the common case, checked fast."""
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        return False
    dtype, device = query.dtype, query.device
    kind = device.type
    return (
        dtype in _FLOATS
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
    """Return tensors of one dtype and device, cast as autocast wants; the first is the measure."""
    for name, given in named:
        if not isinstance(given, Tensor) or given.layout is not torch.strided:
            _refuse_tensor(name, given)
    first_name, first = named[0]
    device = first.device
    device_type = device.type
    found = tuple(given for _, given in named)
    if device_type != "meta" and is_autocast_enabled(device_type):
        found = _autocast(device_type, found)
    dtype = found[0].dtype
    if dtype not in _FLOATS:
        _refuse_dtype(first_name, dtype)
    for tensor in found:
        if tensor.dtype is not dtype or tensor.device != device:
            _refuse_mixed(named, found)
    return found


def _autocast(device_type: str, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cast as autocast casts the operands of attention: all but float64 and integers."""
    wanted = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(wanted) if t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in given
    )


def options(rank: int, head_dim: int, unchecked: tuple[Any, Any, Any, Any, Any]) -> Options:
    """Return the options, checked: one entry for each axis, and a scale that is a number.

    unchecked: kernel_size, stride, dilation, is_causal and scale as the caller passed them.
    """
    kernel_size, stride, dilation, is_causal, scale = unchecked
    scale = head_dim**-0.5 if scale is None else scale_of(scale, head_dim)
    if (
        type(kernel_size) is int
        and type(stride) is int
        and type(dilation) is int
        and type(is_causal) is bool
        and 1 <= stride <= kernel_size
        and dilation >= 1
    ):  # The common case, checked fast.
        return Options(
            (kernel_size,) * rank, (stride,) * rank, (dilation,) * rank, (is_causal,) * rank, scale
        )
    sizes = _per_axis("kernel_size", kernel_size, rank, at_least=1)
    strides = _per_axis("stride", stride, rank, at_least=1)
    dilations = _per_axis("dilation", dilation, rank, at_least=1)
    if max(strides) > min(sizes) and any(s > k for s, k in zip(strides, sizes)):
        raise ArgumentError(
            f"stride is {stride!r}; it must not exceed kernel_size, which is {kernel_size!r}."
        )
    causal = (is_causal,) * rank if isinstance(is_causal, bool) else _flags(is_causal, rank)
    return Options(sizes, strides, dilations, causal, scale)


def _per_axis(name: str, given: Any, rank: int, *, at_least: int) -> tuple[int, ...]:
    # Never the caller's own list: gradients, which come later, are of what it is now.
    entries = tuple(given) if isinstance(given, (tuple, list)) else (given,) * rank
    for entry in entries:
        if type(entry) is not int:
            entries = _integers(name, given, entries, rank)
            break
    if len(entries) != rank:
        _refuse_number(name, given, rank)
    if min(entries) < at_least:
        raise ArgumentError(f"{name} is {given!r}; it must be at least {at_least}.")
    return entries


def _integers(name: str, given: Any, entries: tuple[Any, ...], rank: int) -> tuple[Any, ...]:
    """Return entries as plain integers, but those of a trace, which stay what they are."""
    if not all(map(_is_integer, entries)):
        raise ArgumentTypeError(
            f"{name} is {given!r}; it must be an integer, or one for each axis: "
            f"({_SPATIAL[rank]})."
        )
    return tuple(n if isinstance(n, torch.SymInt) else int(n) for n in entries)


def _is_integer(given: Any) -> bool:
    return isinstance(given, (int, torch.SymInt)) and not isinstance(given, bool)


def _flags(given: Any, rank: int) -> tuple[bool, ...]:
    if not isinstance(given, (tuple, list)) or not all(isinstance(flag, bool) for flag in given):
        raise ArgumentTypeError(
            f"is_causal is {given!r}; it must be True or False, or one of them for each axis: "
            f"({_SPATIAL[rank]})."
        )
    if len(given) != rank:
        _refuse_number("is_causal", given, rank)
    return tuple(given)


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


def bias(rpb: Any, query: Tensor, heads: int, kernel_size: Sequence[int]) -> Tensor:
    """Return rpb, checked, in the dtype that the operators take it in."""
    if not isinstance(rpb, Tensor) or rpb.layout is not torch.strided:
        _refuse_tensor("rpb", rpb)
    if rpb.dtype not in _FLOATS:
        _refuse_dtype("rpb", rpb.dtype)
    if rpb.device != query.device:
        raise ArgumentError(
            f"rpb is on device {rpb.device}; it must be on that of query, {query.device}."
        )
    shape = (heads, *[2 * size - 1 for size in kernel_size])
    if rpb.shape != shape:
        axes = ", ".join(f"2*K{axis}-1" for axis in range(len(kernel_size)))
        raise ArgumentError(
            f"rpb has shape {list(rpb.shape)}; for {heads} heads and this kernel_size it must be "
            f"[heads, {axes}] = {list(shape)}."
        )
    wanted = accumulator(query.dtype)
    return rpb if rpb.dtype is wanted else rpb.to(wanted)


def axes(name: str, tensor: Tensor, rank: int, layout: str, extra: int = 0) -> None:
    """Check the number of axes, and that the last is not empty.

    layout: as messages write it, with {} for the spatial axes; extra: axes beside a batch, spatial
    axes, heads and channels.
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
    """Check a shape in which a word stands for any length."""
    found = tensor.shape
    if len(found) != len(expected) or any(
        want != got for want, got in zip(expected, found) if not isinstance(want, str)
    ):
        raise ArgumentError(
            f"{name} has shape {list(found)}; it must be [{', '.join(map(str, expected))}], "
            f"{because}."
        )


def divides(name: str, heads_kv: int, heads: int, of: str = "query") -> None:
    """Check that a number of heads divides that of the query."""
    # No heads at all are an empty result.
    if heads and (heads_kv < 1 or heads % heads_kv):
        raise ArgumentError(
            f"{name} has {heads_kv} heads; their number must divide that of {of}, {heads}."
        )


def _refuse_number(name: str, given: Any, rank: int) -> NoReturn:
    raise ArgumentError(f"{name} is {given!r}; it must have {_ENTRIES[rank]}, one per axis.")


def _refuse_tensor(name: str, given: Any) -> NoReturn:
    if not isinstance(given, Tensor):
        raise ArgumentTypeError(f"{name} is a {type(given).__name__}; it must be a torch.Tensor.")
    raise ArgumentTypeError(
        f"{name} has layout {given.layout}; it must be dense, torch.strided: {name}.to_dense()."
    )


def _refuse_dtype(name: str, dtype: torch.dtype) -> NoReturn:
    raise ArgumentTypeError(
        f"{name} has dtype {dtype}; it must be torch.float32, torch.float16, "
        "torch.bfloat16 or torch.float64."
    )


def _refuse_mixed(named: Sequence[tuple[str, Any]], found: Sequence[Tensor]) -> NoReturn:
    first = found[0]
    measure = named[0][0]
    for (name, _), tensor in zip(named, found):
        if tensor.dtype is not first.dtype:
            raise ArgumentTypeError(
                f"{name} has dtype {tensor.dtype}; it must be that of {measure}, {first.dtype}."
            )
    name, other = next((n, t) for (n, _), t in zip(named, found) if t.device != first.device)
    raise ArgumentError(
        f"{name} is on device {other.device}; it must be on that of {measure}, {first.device}."
    )


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
    "enable_gqa": "key and value may have fewer heads than query without it.",
    "backend": "natc chooses the kernel. The functions of natc.compat.get_kernel accept backend.",
}


def refuse(unsupported: Mapping[str, Any]) -> NoReturn:
    """Raise ArgumentTypeError for the first of `unsupported`, and say what natc offers instead."""
    name = next(iter(unsupported))
    instead = _INSTEAD.get(name, "Its arguments are listed by help(natc.neighborhood_attention).")
    raise ArgumentTypeError(f"natc's attention has no argument {name!r}. {instead}")
