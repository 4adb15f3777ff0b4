"""What the functions of the reference accept, and how they say no."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def per_axis(name: str, given: Any, rank: int, *, flag: bool = False) -> tuple[int, ...]:
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


def check_query(name: str, tensor: Tensor) -> tuple[int, ...]:
    """Check that a tensor has 1 to 3 spatial axes, and return its shape."""
    check_tensor(name, tensor, like=None)
    if not 4 <= tensor.ndim <= 6:
        raise ArgumentError(
            f"{name} has {tensor.ndim} axes; it must have 4, 5 or 6: "
            "[batch, 1 to 3 spatial axes, heads, channels]."
        )
    return tuple(tensor.shape)


def check_tensor(name: str, tensor: Any, *, like: Tensor | None, any_float: bool = False) -> None:
    """Check type, dtype and device; `like` is the query, whose dtype and device it must have."""
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


def check_keys(
    name: str, tensor: Tensor, leading: tuple[int, ...], heads: int, *, channels: int | None
) -> int:
    """Check `[*leading, heads_kv, channels]` and return heads_kv."""
    check_shape(name, tensor, (*leading, "heads_kv", "channels" if channels is None else channels))
    heads_kv = tensor.shape[-2]
    if heads_kv < 1 or heads % heads_kv:
        raise ArgumentError(
            f"{name} has {heads_kv} heads; their number must divide that of query, {heads}."
        )
    return heads_kv


def check_tokens(
    name: str, tensor: Tensor, key: Tensor, *, channels: int, tokens: int | str = "tokens"
) -> None:
    """Check `[batch, tokens, heads_kv, channels]`, with the batch and heads_kv of key."""
    check_shape(name, tensor, (key.shape[0], tokens, key.shape[-2], channels))


def check_shape(name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
    """Check a shape in which a word stands for any length."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        isinstance(want, int) and got != want for got, want in zip(shape, expected, strict=True)
    ):
        raise ArgumentError(
            f"{name} has shape {list(shape)}; it must be [{', '.join(map(str, expected))}]."
        )
