"""The stand-in for a release of NATTEN, for the time of a test, and its unfused functions."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import natc.compat


@contextlib.contextmanager
def installed(version: str | None = None) -> Iterator[Any]:
    """Yield the module `natten` of a release; None: of the default, the union of all releases."""
    natc.compat.install(version)
    try:
        yield importlib.import_module("natten")
    finally:
        natc.compat.uninstall()


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers in float64, the same for the same shape and seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def unfused_qk(
    natten: Any,
    query: Tensor,
    key: Tensor,
    options: dict[str, tuple[Any, ...]],
    rpb: Tensor | None = None,
    more: Tensor | None = None,
) -> Tensor:
    """Return query key^T + rpb by the function that the release has for it.

    options: kernel_size, dilation and is_causal, an entry for each axis. more: additional keys.
    """
    f, version, rank = natten.functional, natten.__version__, query.ndim - 3
    sizes, steps = options["kernel_size"], options["dilation"]
    if version <= "0.14.4":
        return getattr(f, f"natten{rank}dqkrpb")(query, key, rpb, steps[0])
    if version < "0.15":
        if rpb is None:
            return getattr(f, f"natten{rank}dqk")(query, key, sizes[0], steps[0])
        return getattr(f, f"natten{rank}dqkrpb")(query, key, rpb, sizes[0], steps[0])
    if version < "0.17":
        where = (*sizes[:2], *steps[:2]) if rank == 3 else (sizes[0], steps[0])
        return getattr(f, f"na{rank}d_qk_with_bias")(query, key, rpb, *where, more)
    return getattr(f, f"na{rank}d_qk")(query, key, sizes, steps, more, options["is_causal"], rpb)


def unfused_av(
    natten: Any,
    attn: Tensor,
    value: Tensor,
    options: dict[str, tuple[Any, ...]],
    more: Tensor | None = None,
) -> Tensor:
    """Return attn times value by the function that the release has for it; see `unfused_qk`."""
    f, version, rank = natten.functional, natten.__version__, value.ndim - 3
    sizes, steps = options["kernel_size"], options["dilation"]
    if version <= "0.14.5":
        return getattr(f, f"natten{rank}dav")(attn, value, steps[0])
    if version < "0.15":
        return getattr(f, f"natten{rank}dav")(attn, value, sizes[0], steps[0])
    if version < "0.17":
        where = (*sizes[:2], *steps[:2]) if rank == 3 else (sizes[0], steps[0])
        return getattr(f, f"na{rank}d_av")(attn, value, *where, more)
    return getattr(f, f"na{rank}d_av")(attn, value, sizes, steps, more, options["is_causal"])
