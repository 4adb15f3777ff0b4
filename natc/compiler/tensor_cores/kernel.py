"""A kernel for tensor cores as an operation of the design space has it, and its grid of warps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tvm import tirx

from natc.compiler.tensor_cores.place import LANES, WarpTile
from natc.spec import KernelSpec

# Names of the sampled numbers, and of their annotations on the block `output`.
WARPS_0, WARPS_1, RESIDENT = "warps_0", "warps_1", "resident_warps"
PRODUCTS, ROWS = "products", "rows"
# What the device functions of a dtype have in their names.
SHORT = {"float16": "f16", "bfloat16": "bf16"}


class TensorCoreKernel(NamedTuple):
    """How an operation is computed on tensor cores.

    numbers(spec): the candidates of each sampled number, the untuned kernel's first.
    launch(p, spec, numbers): the statement that launches the kernel; p: the function's parameters
    by name.
    """

    numbers: Callable[[KernelSpec], dict[str, Sequence[int]]]
    launch: Callable[[Mapping[str, Any], KernelSpec, Mapping[str, int]], tirx.Stmt]


def warps_of(numbers: Mapping[str, int]) -> tuple[int, int]:
    """Return the warps of a block on the axes of rows and columns."""
    return numbers.get(WARPS_0, 1), numbers[WARPS_1]


@contextmanager
def grid(place: WarpTile, resident_warps: int) -> Iterator[None]:
    """Do the block in every warp that has a tile, once its place is found.

    resident_warps: warps of a multiprocessor for whose registers there must be room.
    """
    s = place.s
    warps = math.prod(place.tile.warps)
    with (
        s.threads("blockIdx.x", place.tiles) as block,
        s.threads("blockIdx.y", place.heads) as head,
        s.threads("blockIdx.z", place.batch_size) as batch,
        s.threads("threadIdx.y", warps) as warp,
        s.threads("threadIdx.x", LANES) as lane,
        s.attribute("tirx.launch_bounds_min_blocks_per_sm", max(1, resident_warps // warps)),
    ):
        place.find(block, head, batch, warp, lane)
        with s.when(place.is_there):
            yield
