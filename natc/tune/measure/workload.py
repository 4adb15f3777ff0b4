"""The shapes that a search measures by default."""

from __future__ import annotations

from collections.abc import Iterable

from natc.spec import KernelSpec
from natc.store.records import shape_key
from natc.targets import Target

Shape = tuple[int, ...]  # batch, a size for each axis, heads

# The four levels of NAT at 224 x 224 (NAT-Mini and NAT-Tiny): the side of the map, and heads.
_LEVELS = ((56, 2), (28, 4), (14, 8), (7, 16))
_FRAMES = 8  # of a video whose frames are such maps
# CPUs usually run one image at a time; only a batch fills a GPU.
_BATCH = {"llvm": 1, "cuda": 128}


def default_shapes(spec: KernelSpec, target: Target) -> list[Shape]:
    """Return the shapes of NAT's four levels, each (batch, height, width, heads).

    Other ranks get as many tokens: a line as long as the map, or a video of 8 frames with an
    eighth of the batch.
    """
    batch = _BATCH[target.kind]
    if spec.rank == 1:
        return [(batch, side * side, heads) for side, heads in _LEVELS]
    if spec.rank == 2:
        return [(batch, side, side, heads) for side, heads in _LEVELS]
    videos = max(1, batch // _FRAMES)
    return [(videos, _FRAMES, side, side, heads) for side, heads in _LEVELS]


def keys_of(shapes: Iterable[Shape], spec: KernelSpec) -> list[str]:
    """Return each shape's key in a log: `BxHxWxheadsxhead_dim`."""
    return [shape_key((*shape, spec.head_dim)) for shape in shapes]
