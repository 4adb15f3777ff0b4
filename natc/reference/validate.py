"""Checks of the arguments of the reference's functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError

FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))


def per_axis(name: str, value: Any, rank: int, *, flag: bool = False) -> tuple[int, ...]:
    """Return an option as one integer >= 1, or one flag, for each axis."""
    kind = bool if flag else int
    entries = (value,) * rank if isinstance(value, (int, bool)) else value
    if not isinstance(entries, (tuple, list)) or any(type(entry) is not kind for entry in entries):
        what = "True or False" if flag else "an integer"
        raise ArgumentTypeError(f"{name} is {value!r}; it must be {what}, or one for each axis.")
    if len(entries) != rank:
        raise ArgumentError(f"{name} is {value!r}; it must have {rank} entries, one per axis.")
    if not flag and min(entries) < 1:
        raise ArgumentError(f"{name} is {value!r}; it must be at least 1.")
    return tuple(entries)


def check_query(name: str, tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor, checked to have 1 to 3 spatial axes."""
    check_tensor(name, tensor, like=None)
    if not 4 <= tensor.ndim <= 6:
        raise ArgumentError(
            f"{name} has {tensor.ndim} axes; it must have 4, 5 or 6: "
            "[batch, 1 to 3 spatial axes, heads, channels]."
        )
    return tuple(tensor.shape)


def check_dense(name: str, value: Any) -> None:
    """Raise ArgumentTypeError unless value is a dense tensor."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name} is a {type(value).__name__}; it must be a torch.Tensor.")
    if value.is_nested:
        raise ArgumentTypeError(
            f"{name} is a nested tensor, layout {value.layout}; it must be dense: call natc for "
            f"each tensor of {name}.unbind()."
        )
    if value.layout is not torch.strided:
        raise ArgumentTypeError(
            f"{name} has layout {value.layout}; it must be dense, torch.strided: "
            f"{name}.to_dense()."
        )


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise ArgumentTypeError unless a tensor is float32, float16, bfloat16 or float64."""
    if tensor.dtype not in FLOATS:
        raise ArgumentTypeError(
            f"{name} has dtype {tensor.dtype}; it must be torch.float32, torch.float16, "
            "torch.bfloat16 or torch.float64."
        )


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raise ArgumentError unless a tensor is on the device of `like`, named like_name."""
    if tensor.device != like.device:
        raise ArgumentError(
            f"{name} is on device {tensor.device}; it must be on {like.device}, as {like_name} is."
        )


def check_tensor(name: str, tensor: Any, *, like: Tensor | None, any_float: bool = False) -> None:
    """Raise unless a tensor is dense and has the dtype and device of `like`, the query.

    any_float: a float dtype other than the query's will do.
    """
    check_dense(name, tensor)
    check_dtype(name, tensor)
    if like is None:
        return
    if not any_float and tensor.dtype != like.dtype:
        raise ArgumentTypeError(
            f"{name} has dtype {tensor.dtype}; it must be {like.dtype}, as query is."
        )
    check_device(name, tensor, "query", like)


def check_keys(
    name: str, tensor: Tensor, leading: tuple[int, ...], heads: int, *, channels: int | None
) -> int:
    """Return heads_kv of a tensor checked to be `[*leading, heads_kv, channels]`."""
    check_shape(name, tensor, (*leading, "heads_kv", "channels" if channels is None else channels))
    heads_kv = tensor.shape[-2]
    if heads_kv < 1 or heads % heads_kv:
        raise ArgumentError(
            f"{name} has {heads_kv} heads; their number must divide the {heads} heads of query."
        )
    return heads_kv


def check_shape(name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
    """Raise unless a tensor has the expected shape, in which a word stands for any length."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        isinstance(want, int) and got != want for got, want in zip(shape, expected, strict=True)
    ):
        raise ArgumentError(
            f"{name} has shape {list(shape)}; it must be [{', '.join(map(str, expected))}]."
        )
