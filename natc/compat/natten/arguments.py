"""What releases of NATTEN accepted, and how they said no.

Limits that belong to what is computed are reproduced, with the type of exception of the release:
programs have been written around them. Limits of its kernels (head dims, kernel sizes, dtypes,
devices) are not; there natc's own apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from natc.errors import ArgumentError


class WindowError(ArgumentError, RuntimeError):
    """A window that releases up to 0.17.5 refused with a RuntimeError."""


def sizes(name: str, given: Any, rank: int, *, at_least: int = 1) -> tuple[int, ...]:
    """Return one integer for each axis; None is 1 for each.

    Raises:
        ArgumentError: neither an integer nor a sequence with one for each axis (a ValueError, as
            in every release).
    """
    if given is None:
        return (1,) * rank
    entries = (given,) * rank if isinstance(given, int) else given
    if (
        not isinstance(entries, Sequence)
        or len(entries) != rank
        or any(isinstance(entry, bool) or not isinstance(entry, int) for entry in entries)
    ):
        raise ArgumentError(
            f"{name} is {given!r}; it must be an integer or {rank} of them, one per axis."
        )
    if min(entries) < at_least:
        raise ArgumentError(f"{name} is {given!r}; it must be at least {at_least}.")
    return tuple(entries)


def flags(given: Any, rank: int) -> tuple[bool, ...]:
    """Return is_causal with one entry for each axis; None is False.

    Raises:
        ArgumentError: neither a bool nor a sequence with one for each axis.
    """
    if given is None:
        return (False,) * rank
    entries = (given,) * rank if isinstance(given, bool) else given
    if (
        not isinstance(entries, Sequence)
        or len(entries) != rank
        or not all(isinstance(entry, bool) for entry in entries)
    ):
        raise ArgumentError(
            f"is_causal is {given!r}; it must be a bool or {rank} of them, one per axis."
        )
    return tuple(entries)


def check_window(
    kernel_size: Sequence[int], dilation: Sequence[int], spatial: Sequence[int]
) -> None:
    """Check odd sizes, and that a map holds a window, as releases up to 0.17.5 did.

    Raises:
        WindowError: a size is even or below 3, a dilation below 1, or a map too small.
    """
    for size, step in zip(kernel_size, dilation):
        if size < 2 or size % 2 == 0:
            raise WindowError(
                f"kernel_size is {list(kernel_size)}; up to NATTEN 0.17.5 it must be odd and "
                "greater than 1 on each axis. natc.na1d, na2d and na3d take even ones."
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
    """Check that each axis is as long as kernel_size * dilation; natc itself does not ask it."""
    for length, size, step in zip(spatial, kernel_size, dilation):
        if size * step > length:
            raise error(
                f"the map is {list(spatial)}, kernel_size {list(kernel_size)} and dilation "
                f"{list(dilation)}; each axis must be at least kernel_size * dilation long. "
                "Modules up to 0.15 padded smaller maps: natc.compat.install('0.14.6'). Those of "
                "natc, and natc.na1d, na2d and na3d, shrink the window."
            )


def check_bias(causal: Sequence[bool], rpb: Tensor | None) -> None:
    """Refuse a positional bias on a causal axis, as 0.17 did.

    Raises:
        NotImplementedError: there are both.
    """
    if rpb is not None and any(causal):
        raise NotImplementedError(
            f"is_causal is {list(causal)} and a positional bias is given; NATTEN 0.17 has no "
            "causal attention with a bias. natc.na1d, na2d and na3d have."
        )


def refuse_nested(*tensors: Any) -> None:
    """Refuse nested tensors, which some releases took apart and called once for each entry.

    Raises:
        NotImplementedError: one is nested.
    """
    if any(getattr(tensor, "is_nested", False) for tensor in tensors):
        raise NotImplementedError("Nested tensors are not taken apart; call once for each entry.")
