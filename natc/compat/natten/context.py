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


def is_memory_usage_default() -> bool:
    """Return whether the preference is "default"."""
    return SETTINGS.memory is MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    """Return whether the preference is "strict"."""
    return SETTINGS.memory is MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    """Return whether the preference is "unrestricted"."""
    return SETTINGS.memory is MemoryUsagePreference.Unrestricted


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Store the switch; natc is deterministic with it on or off."""
    SETTINGS.deterministic = mode


def are_deterministic_algorithms_enabled() -> bool:
    """Return the switch."""
    return SETTINGS.deterministic


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


def is_kv_parallelism_in_fused_na_enabled() -> bool:
    """Return the switch."""
    return SETTINGS.kv_parallel


def is_flex_compile_allowed() -> bool:
    """Return the switch."""
    return SETTINGS.compile_flex


def is_flex_compile_backprop_allowed() -> bool:
    """Return the switch."""
    return SETTINGS.compile_flex_backward


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


def _by_name(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {function.__name__: function for function in functions}


COMMON = _by_name(
    set_memory_usage_preference,
    get_memory_usage_preference,
    is_memory_usage_default,
    is_memory_usage_strict,
    is_memory_usage_unrestricted,
    use_deterministic_algorithms,
    are_deterministic_algorithms_enabled,
    use_kv_parallelism_in_fused_na,
    is_kv_parallelism_in_fused_na_enabled,
)
FLEX_COMPILE = _by_name(
    is_flex_compile_allowed,
    is_flex_compile_backprop_allowed,
    allow_flex_compile,
    allow_flex_compile_backprop,
    disable_flex_compile,
    disable_flex_compile_backprop,
)
