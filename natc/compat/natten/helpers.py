"""`natten.utils` and `natten.types` of 0.17, as far as programs import from them."""

from __future__ import annotations

import logging
import math
import types
from typing import Any

from natc.compat.natten.arguments import flags, sizes


def check_kernel_size_arg(na_dim: int, kernel_size: Any) -> tuple[int, ...]:
    """Return kernel_size with one entry for each axis."""
    return sizes("kernel_size", kernel_size, na_dim)


def check_dilation_arg(na_dim: int, dilation: Any) -> tuple[int, ...]:
    """Return dilation with one entry for each axis; None is 1."""
    return sizes("dilation", dilation, na_dim)


def check_causal_arg(na_dim: int, is_causal: Any) -> tuple[bool, ...]:
    """Return is_causal with one entry for each axis; None is False."""
    return flags(is_causal, na_dim)


def check_all_args(na_dim: int, kernel_size: Any, dilation: Any, is_causal: Any) -> Any:
    """Return kernel_size, dilation and is_causal with one entry for each axis."""
    return (
        check_kernel_size_arg(na_dim, kernel_size),
        check_dilation_arg(na_dim, dilation),
        check_causal_arg(na_dim, is_causal),
    )


def get_num_na_weights(kernel_size: tuple[int, ...]) -> int:
    """Return how many keys a window has."""
    return math.prod(kernel_size)


UTILS = {
    "check_all_args": check_all_args,
    "check_causal_arg": check_causal_arg,
    "check_dilation_arg": check_dilation_arg,
    "check_kernel_size_arg": check_kernel_size_arg,
    "get_num_na_weights": get_num_na_weights,
    "log": types.SimpleNamespace(get_logger=logging.getLogger),
}


def aliases_of_types() -> dict[str, Any]:
    """Return the aliases of `natten.types`."""
    found: dict[str, Any] = {"NoneType": type(None)}
    for name, entry in (("Dimension", int), ("CausalArg", bool)):
        aliases = [types.GenericAlias(tuple, (entry,) * rank) for rank in (1, 2, 3)]
        for rank, alias in enumerate(aliases, start=1):
            found[f"{name}{rank}DType"] = alias
            found[f"{name}{rank}DTypeOrDed"] = entry | alias
        found[f"{name}Type"] = aliases[0] | aliases[1] | aliases[2]
    return found
