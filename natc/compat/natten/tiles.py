"""The functions of 0.20 and 0.21 that list tile shapes for their kernels; natc lists none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from natc.compat.natten.operators import named
from natc.compat.natten.releases import Release


def functions(release: Release) -> dict[str, Callable[..., Any]]:
    """Return get_configs_for_* and get_bwd_configs_for_* of a release; each returns []."""
    forward = ("cutlass", "cutlass_hopper", "cutlass_blackwell", "flex")
    backward = forward[:-1] if release.number >= (0, 21, 0) else ("cutlass",)
    names = [
        f"get_{direction}configs_for_{backend}_{kind}"
        for direction, backends in (("", forward), ("bwd_", backward))
        for backend in backends
        for kind in ("fmha", "fna")
    ]
    return {name: named(_list(release, name), name) for name in names}


def _list(release: Release, name: str) -> Callable[..., Any]:
    def of_input(input_tensor: Tensor) -> list[Any]:
        return []

    def of_call(query: Tensor, key: Tensor, value: Tensor) -> list[Any]:
        return []

    def of_flex(
        query: Tensor, key: Tensor, value: Tensor, torch_compile: bool = False
    ) -> list[Any]:
        return []

    if release.number == (0, 20, 0):
        return of_input
    return of_flex if "flex" in name else of_call
