"""Checks of arguments, with the exception types that each NATTEN release raises.

Programs rely on the refusals that follow from the definition of attention, such as a map smaller
than the window, so these are reproduced. The limits of NATTEN's kernels (head dims, dtypes,
devices) are not: there natc's own limits hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from natc.errors import ArgumentError


class WindowError(ArgumentError, RuntimeError):
    """A window that NATTEN refuses: with a RuntimeError up to 0.17.5, a ValueError since 0.20."""


def sizes(name: str, value: Any, rank: int, *, at_least: int = 1) -> tuple[int, ...]:
    """Return `value` as one integer per axis; a stride or dilation of None is 1 on every axis.

    Raises:
        ArgumentError: neither an integer nor a sequence of `rank` integers (a ValueError, as in
            every release).
    """
    if value is None and name in ("stride", "dilation"):
        return (1,) * rank
    entries = (value,) * rank if isinstance(value, int) else value
    if (
        not isinstance(entries, Sequence)
        or len(entries) != rank
        or any(isinstance(entry, bool) or not isinstance(entry, int) for entry in entries)
    ):
        raise ArgumentError(
            f"{name} is {value!r}; it must be an integer or {rank} of them, one per axis."
        )
    if min(entries) < at_least:
        raise ArgumentError(f"{name} is {value!r}; it must be at least {at_least}.")
    return tuple(entries)


def flags(is_causal: Any, rank: int) -> tuple[bool, ...]:
    """Return `is_causal` as one bool per axis; None is False on every axis.

    Raises:
        ArgumentError: neither a bool nor a sequence of `rank` bools.
    """
    if is_causal is None:
        return (False,) * rank
    entries = (is_causal,) * rank if isinstance(is_causal, bool) else is_causal
    if (
        not isinstance(entries, Sequence)
        or len(entries) != rank
        or not all(isinstance(entry, bool) for entry in entries)
    ):
        raise ArgumentError(
            f"is_causal is {is_causal!r}; it must be a bool or {rank} of them, one per axis."
        )
    return tuple(entries)


def options_017(
    na_dim: int, kernel_size: Any, dilation: Any, is_causal: Any
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Return the options of 0.17 with one entry per axis; raises as `sizes` and `flags` do."""
    return (
        sizes("kernel_size", kernel_size, na_dim),
        sizes("dilation", dilation, na_dim),
        flags(is_causal, na_dim),
    )


def options_020(
    na_dim: int,
    kernel_size: Any,
    stride: Any,
    dilation: Any,
    is_causal: Any,
    smallest: int = 2,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Return the options of 0.20 with one entry per axis; raises as `sizes` and `flags` do.

    smallest: the least kernel size.
    """
    return (
        sizes("kernel_size", kernel_size, na_dim, at_least=smallest),
        sizes("stride", stride, na_dim),
        sizes("dilation", dilation, na_dim),
        flags(is_causal, na_dim),
    )


def check_window(
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    spatial: Sequence[int],
    *,
    even: bool = False,
    smallest: int = 2,
) -> None:
    """Check a window as the releases up to 0.17.5 did, which refused even sizes unless `even`.

    Raises:
        WindowError: a size is even or below `smallest`, a dilation below 1, or the map is smaller
            than kernel_size * dilation.
    """
    for size, step in zip(kernel_size, dilation):
        if size < smallest or (size % 2 == 0 and not even):
            raise WindowError(
                f"kernel_size is {list(kernel_size)}; here NATTEN takes "
                f"{'sizes' if even else 'odd sizes'} greater than 1. Even sizes are for fused "
                "attention without a bias, since 0.17.5. natc.na1d, na2d and na3d take all sizes."
            )
        if step < 1:
            raise WindowError(f"dilation is {list(dilation)}; it must be at least 1.")
    check_room(kernel_size, dilation, spatial, WindowError)


def check_room(
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    spatial: Sequence[int],
    error: type[ArgumentError],
) -> None:
    """Raise `error` if an axis is shorter than kernel_size * dilation; natc.na2d allows it."""
    for length, size, step in zip(spatial, kernel_size, dilation):
        if size * step > length:
            raise error(
                f"the map is {list(spatial)}, kernel_size {list(kernel_size)} and dilation "
                f"{list(dilation)}; each axis must be at least kernel_size * dilation long. "
                "Modules up to 0.15 padded smaller maps: natc.compat.install('0.14.6'). natc.na2d "
                "and its likes, and the modules of natc.nn, shrink the window."
            )


def check_bias(causal: Sequence[bool], rpb: Tensor | None) -> None:
    """Refuse a positional bias on a causal axis, as 0.17 did.

    Raises:
        NotImplementedError: an axis is causal and `rpb` is not None.
    """
    if rpb is not None and any(causal):
        raise NotImplementedError(
            f"is_causal is {list(causal)} and rpb is a tensor; NATTEN 0.17 has no causal "
            "attention with a bias. natc.na1d, na2d and na3d have."
        )


def refuse_nested(*tensors: Any) -> None:
    """Refuse nested tensors; some releases ran one call per entry of a nested tensor.

    Raises:
        NotImplementedError: a tensor is nested.
    """
    if any(getattr(tensor, "is_nested", False) for tensor in tensors):
        raise NotImplementedError("Nested tensors are not supported; make one call per entry.")
