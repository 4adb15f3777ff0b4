"""`natten.types` and `natten.utils` of 0.17 and of 0.20, as far as programs import from them."""

from __future__ import annotations

import logging
import math
import types
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from natc.compat.natten.arguments import (
    check_room,
    flags,
    options_017,
    options_020,
    sizes,
)
from natc.compat.natten.operators import by_name, variant
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError

_Names = dict[str, Any]


class KernelSchedule(Enum):
    """The schedules of NATTEN's Hopper kernels; natc ignores them."""

    NonPersistent = 0
    WarpSpecializedCooperative = 1
    WarpSpecializedPingpong = 2


def aliases_of_types(release: Release) -> _Names:
    """Return the contents of `natten.types` in a release from 0.17 on."""
    names: _Names = {"NoneType": type(None)}
    for name, entry in (("Dimension", int), ("CausalArg", bool)):
        aliases = [types.GenericAlias(tuple, (entry,) * rank) for rank in (1, 2, 3)]
        for rank, alias in enumerate(aliases, start=1):
            names[f"{name}{rank}DType"] = alias
            names[f"{name}{rank}DTypeOrDed"] = entry | alias
        names[f"{name}Type"] = aliases[0] | aliases[1] | aliases[2]
        if release.number >= (0, 20, 0):
            names[f"{name}TypeOrDed"] = entry | names[f"{name}Type"]
    if release.number >= (0, 20, 0):
        return names | {"KernelSchedule": KernelSchedule}
    return names | _CREATORS


def utils(release: Release) -> dict[str, _Names]:
    """Return the contents of `natten.utils` and of its submodules in a release from 0.17 on."""
    modules: dict[str, _Names] = {
        "utils.checks": checks(release),
        "utils.log": {"get_logger": logging.getLogger},
    }
    if release.number >= (0, 20, 0):
        modules |= {"utils.tuples": _CREATORS, "utils.device": {"get_device_cc": get_device_cc}}
        return {"utils": {}, **modules}
    modules["utils.misc"] = {"get_device_cc": get_device_cc}
    names = modules["utils.checks"] | modules["utils.misc"]
    return {"utils": {**names, "__submodules__": ["checks", "log", "misc"]}, **modules}


def checks(release: Release) -> dict[str, Callable[..., Any]]:
    """Return the functions of `natten.utils.checks` in a release from 0.17 on.

    Each returns its option with one entry per axis, and raises ArgumentError, a ValueError.
    """
    late = release.number >= (0, 20, 0)
    smallest = release.smallest if late else 1

    def check_kernel_size_arg(na_dim: int, kernel_size: Any) -> tuple[int, ...]:
        return sizes("kernel_size", kernel_size, na_dim, at_least=smallest)

    def check_input_size_arg(na_dim: int, input_size: Any) -> tuple[int, ...]:
        return sizes("input_size", input_size, na_dim, at_least=smallest)

    def check_stride_arg(na_dim: int, stride: Any) -> tuple[int, ...]:
        return sizes("stride", stride, na_dim)

    def check_dilation_arg(na_dim: int, dilation: Any) -> tuple[int, ...]:
        return sizes("dilation", dilation, na_dim)

    def check_causal_arg(na_dim: int, is_causal: Any) -> tuple[bool, ...]:
        return flags(is_causal, na_dim)

    names = by_name(
        check_kernel_size_arg, check_input_size_arg, check_dilation_arg, check_causal_arg
    )
    if not late:
        return names | {"check_all_args": options_017, "get_num_na_weights": math.prod}
    names["check_all_args"] = variant(options_020, fixed={"smallest": smallest})
    return names | by_name(check_stride_arg, check_args_against_input)


def check_args_against_input(
    input_tensor: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
) -> None:
    """Raise ArgumentError if a window does not fit on the map, or a stride exceeds its window."""
    check_room(kernel_size, dilation, input_tensor.shape[1:-2], ArgumentError)
    if any(step > size for step, size in zip(stride, kernel_size)):
        raise ArgumentError(
            f"stride is {list(stride)}; it must be at most kernel_size, {list(kernel_size)}."
        )


def get_device_cc(device: Any = None) -> int:
    """Return the compute capability of a GPU, such as 90; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def create_dim_from_int(na_dim: int, value: int) -> tuple[int, ...]:
    """Return `value` once per axis."""
    return (value,) * na_dim


def create_causal_arg_from_bool(na_dim: int, value: bool) -> tuple[bool, ...]:
    """Return `value` once per axis."""
    return (value,) * na_dim


_CREATORS = by_name(create_dim_from_int, create_causal_arg_from_bool)
