"""Which inputs a search measures."""

from __future__ import annotations

from natc.spec import KernelSpec
from natc.targets import Target

Shape = tuple[int, int, int, int]  # batch, height, width, heads

# The four levels of NAT at 224 x 224 (NAT-Mini and NAT-Tiny).
_LEVELS = ((56, 56, 2), (28, 28, 4), (14, 14, 8), (7, 7, 16))
# One image is what a CPU is asked for; a GPU is only filled by a batch.
_BATCH = {"llvm": 1, "cuda": 128}


def default_shapes(spec: KernelSpec, target: Target) -> list[Shape]:
    """Return NAT's four levels, each (batch, height, width, heads)."""
    return [(_BATCH[target.kind], *level) for level in _LEVELS]


def with_head_dim(shape: Shape, spec: KernelSpec) -> tuple[int, ...]:
    """Return the shape of the query: (batch, height, width, heads, head_dim)."""
    return (*shape, spec.head_dim)
