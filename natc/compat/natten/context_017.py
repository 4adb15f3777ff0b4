"""The switches that only 0.15 and 0.17 have, and their functions that describe the GPU.

`has_fna` and `has_fused_na` are always true: natc has fused attention on every device, NATTEN 0.17
on GPUs only. The other `has_*` report the same as a complete build of the release on this GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from natc.compat.natten.context import (
    COMMON,
    SETTINGS,
    reader,
    use_kv_parallelism_in_fused_na,
)
from natc.compat.natten.helpers import get_device_cc
from natc.compat.natten.operators import by_name, named, variant
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError

_Functions = dict[str, Callable[..., Any]]


def has_cuda() -> bool:
    """Return whether there is a GPU."""
    return torch.cuda.is_available()


def has_fna(device_index: Any = None) -> bool:
    """Return True: natc has fused attention on every device."""
    return True


def use_autotuner(
    forward_pass: bool | None = None,
    backward_pass: bool | None = None,
    thorough_mode_forward: bool | None = None,
    thorough_mode_backward: bool | None = None,
    warmup_steps_forward: int | None = None,
    warmup_steps_backward: int | None = None,
    steps_forward: int | None = None,
    steps_backward: int | None = None,
) -> None:
    """Store the switches that are not None; `natc tune` tunes natc. Steps are checked only.

    As in the release, turning both passes off ignores the other arguments.

    Raises:
        ArgumentError: a switch is neither a bool nor None, or steps are neither an int nor None.
        RuntimeError: a pass is switched on while NATTEN's deterministic mode is on.
    """
    if not forward_pass and not backward_pass and None not in (forward_pass, backward_pass):
        SETTINGS.tune_forward = SETTINGS.tune_backward = False
        return
    if (forward_pass or backward_pass) and torch.are_deterministic_algorithms_enabled():
        warnings.warn(
            "The autotuner stays off because PyTorch's deterministic mode is on.", stacklevel=2
        )
        return
    switches = {
        "tune_forward": forward_pass,
        "tune_backward": backward_pass,
        "thorough_forward": thorough_mode_forward,
        "thorough_backward": thorough_mode_backward,
    }
    steps = (warmup_steps_forward, warmup_steps_backward, steps_forward, steps_backward)
    for values, kind in ((switches.values(), bool), (steps, int)):
        for value in values:
            if value is not None and not isinstance(value, kind):
                raise ArgumentError(
                    f"use_autotuner got {value!r}; its switches must be bools or None, its "
                    "numbers of steps ints or None."
                )
    if SETTINGS.deterministic and (forward_pass or backward_pass):
        raise RuntimeError("Tuning is not deterministic, and deterministic mode is on.")
    for name, switch in switches.items():
        if switch is not None:
            setattr(SETTINGS, name, switch)


def disable_autotuner() -> None:
    """Switch the autotuner and its thorough modes off."""
    SETTINGS.tune_forward = SETTINGS.tune_backward = False
    SETTINGS.thorough_forward = SETTINGS.thorough_backward = False


def is_autotuner_enabled() -> bool:
    """Return whether the switch of either pass is on."""
    return SETTINGS.tune_forward or SETTINGS.tune_backward


def _gpu_functions(half: int) -> _Functions:
    """Return has_*, each true from some compute capability on; `half` is the one for float16."""

    def has(at_least: int) -> Callable[..., bool]:
        def answer(device_index: Any = None) -> bool:
            return get_device_cc(device_index) >= at_least

        return answer

    tf32 = named(has(80), "has_tf32_gemm")
    return {
        "has_cuda": has_cuda,
        "has_half": named(has(half), "has_half"),
        "has_bfloat": named(has(80), "has_bfloat"),
        "has_gemm": named(has(70), "has_gemm"),
        "has_tf32_gemm": tf32,
        "has_fp32_gemm": tf32,
        "has_fp64_gemm": named(has(80), "has_fp64_gemm"),
    }


def _switches(*, returning: bool) -> _Functions:
    """Return enable_* and disable_* for three kinds of kernels.

    returning: whether the functions return the new state.
    """
    functions: _Functions = {}
    for setting, kind in (("tf32", "tf32"), ("gemm", "gemm_na"), ("tiled", "tiled_na")):
        for name, mode in ((f"enable_{kind}", True), (f"disable_{kind}", False)):
            # In every release the functions for tf32 return the state.
            use = _user(setting, returns=returning or kind == "tf32")
            functions[name] = named(variant(use, fixed={"mode": mode}), name)
    return functions


def _kernel_functions() -> _Functions:
    functions: _Functions = {}
    kinds = (("tf32_in_gemm_na", "tf32"), ("tiled_na", "tiled"), ("gemm_na", "gemm"))
    for kind, setting in kinds:
        functions[f"use_{kind}"] = named(_user(setting), f"use_{kind}")
        functions[f"is_{kind}_enabled"] = reader(f"is_{kind}_enabled", setting)
    return functions


def _user(setting: str, *, returns: bool = False) -> Callable[..., Any]:
    def use(mode: bool = True) -> bool | None:
        setattr(SETTINGS, setting, mode)
        return mode if returns else None

    return use


def _fused_functions(release: Release) -> _Functions:
    def early(mode: bool = True, kv_parallel: bool = False) -> None:
        late(mode, kv_parallel)

    def middle(mode: bool = True, kv_parallel: bool = True) -> None:
        late(mode, kv_parallel)

    def late(
        mode: bool = True,
        kv_parallel: bool = True,
        use_flex_attention: bool = False,
        force_flex_attention: bool = False,
    ) -> None:
        use_kv_parallelism_in_fused_na(mode and kv_parallel)
        SETTINGS.fused = mode
        SETTINGS.use_flex = mode and use_flex_attention
        SETTINGS.force_flex = mode and force_flex_attention

    def use_flex_attention() -> None:
        late(use_flex_attention=True)

    def force_flex_attention() -> None:
        late(use_flex_attention=True, force_flex_attention=True)

    use: Callable[..., Any]
    more: _Functions = {}
    if release.number >= (0, 17, 5):
        use = late
        more = by_name(
            use_flex_attention,
            force_flex_attention,
            reader("should_use_flex_attention", "use_flex"),
            reader("should_force_flex_attention", "force_flex"),
        )
    else:
        use = middle if release.number >= (0, 17, 3) else early
    use = named(use, "use_fused_na")
    return {
        "use_fused_na": use,
        "use_fna": use,
        "is_fused_na_enabled": reader("is_fused_na_enabled", "fused"),
        "is_fna_enabled": reader("is_fna_enabled", "fused"),
        "has_fna": has_fna,
        "has_fused_na": has_fna,
        **more,
    }


def functions_015() -> _Functions:
    """Return the functions that `natten` and `natten.functional` have in 0.15."""
    return _gpu_functions(half=60) | _switches(returning=False)


def functions_017(release: Release) -> _Functions:
    """Return the functions of `natten.context` in a release of 0.17."""
    tuner = by_name(
        use_autotuner,
        disable_autotuner,
        is_autotuner_enabled,
        reader("is_autotuner_enabled_for_forward", "tune_forward"),
        reader("is_autotuner_enabled_for_backward", "tune_backward"),
        reader("is_autotuner_thorough_for_forward", "thorough_forward"),
        reader("is_autotuner_thorough_for_backward", "thorough_backward"),
    )
    return {
        **COMMON,
        **_gpu_functions(half=50),
        **_kernel_functions(),
        **_switches(returning=True),
        **_fused_functions(release),
        **tuner,
    }
