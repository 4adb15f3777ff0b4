"""The switches of `natten` and `natten.context`: they are stored, and reported when asked for.

In NATTEN they choose among kernels, or trade memory for time in gradients. natc ignores them, and
its gradients are always deterministic. One switch has an effect, as in the release: while fused
attention is on, modules of 0.17 do not drop out attention weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from natc.compat.natten.operators import by_name, named
from natc.errors import ArgumentError


class MemoryUsagePreference(Enum):
    """How much memory gradients may use; natc's use little with each preference."""

    Default = 0
    Strict = 1
    Unrestricted = 2


@dataclass
class _Settings:
    memory: MemoryUsagePreference = MemoryUsagePreference.Default
    deterministic: bool = False
    kv_parallel: bool = False
    fused: bool = False
    use_flex: bool = False
    force_flex: bool = False
    tune_forward: bool = False
    tune_backward: bool = False
    thorough_forward: bool = False
    thorough_backward: bool = False
    tf32: bool = True
    tiled: bool = True
    gemm: bool = True
    compile_flex: bool = False
    compile_flex_backward: bool = False


SETTINGS = _Settings()


def reset(*, kv_parallel: bool) -> None:
    """Set every switch to its initial value; `kv_parallel` starts on from 0.20 on."""
    SETTINGS.__init__(kv_parallel=kv_parallel)  # type: ignore[misc]


def set_memory_usage_preference(pref: str = "default") -> None:
    """Store the preference "default", "strict" or "unrestricted"."""
    try:
        SETTINGS.memory = MemoryUsagePreference[pref.capitalize()]
    except KeyError:
        raise ArgumentError(
            f"pref is {pref!r}; it must be 'default', 'strict' or 'unrestricted'."
        ) from None


def get_memory_usage_preference() -> MemoryUsagePreference:
    """Return the stored preference."""
    return SETTINGS.memory


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Store the switch; natc is deterministic with it on or off."""
    SETTINGS.deterministic = mode


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    """Store the switch; RuntimeError if NATTEN's deterministic mode is on, as in the release."""
    if mode and torch.are_deterministic_algorithms_enabled():
        warnings.warn(
            "KV parallelism stays off because PyTorch's deterministic mode is on.", stacklevel=2
        )
        return
    if mode and SETTINGS.deterministic:
        raise RuntimeError("KV parallelism is not deterministic, and deterministic mode is on.")
    SETTINGS.kv_parallel = mode


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Store both switches."""
    SETTINGS.compile_flex = mode
    SETTINGS.compile_flex_backward = mode and backprop


def allow_flex_compile_backprop(mode: bool = True) -> None:
    """Store the switch."""
    allow_flex_compile(SETTINGS.compile_flex, mode)


def disable_flex_compile() -> None:
    """Switch both off."""
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    """Switch it off."""
    allow_flex_compile(SETTINGS.compile_flex, False)


def reader(name: str, setting: str, value: Any = True) -> Callable[[], bool]:
    """Return a function called `name` that returns whether a switch has `value`."""

    def read() -> bool:
        return bool(getattr(SETTINGS, setting) == value)

    return named(read, name)


COMMON = by_name(
    set_memory_usage_preference,
    get_memory_usage_preference,
    reader("is_memory_usage_default", "memory", MemoryUsagePreference.Default),
    reader("is_memory_usage_strict", "memory", MemoryUsagePreference.Strict),
    reader("is_memory_usage_unrestricted", "memory", MemoryUsagePreference.Unrestricted),
    use_deterministic_algorithms,
    reader("are_deterministic_algorithms_enabled", "deterministic"),
    use_kv_parallelism_in_fused_na,
    reader("is_kv_parallelism_in_fused_na_enabled", "kv_parallel"),
)
FLEX_COMPILE = by_name(
    reader("is_flex_compile_allowed", "compile_flex"),
    reader("is_flex_compile_backprop_allowed", "compile_flex_backward"),
    allow_flex_compile,
    allow_flex_compile_backprop,
    disable_flex_compile,
    disable_flex_compile_backprop,
)
