"""TensorCoreKernel, which an operation's kernel for tensor cores is, and its grid of warps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tvm import tirx

from natc.compiler.tensor_cores.warp_tile import LANES, WarpTile
from natc.spec import KernelSpec

# Names of the sampled numbers, and of their annotations on the block `output`.
WARPS_0, WARPS_1, RESIDENT = "warps_0", "warps_1", "resident_warps"
PRODUCTS, ROWS = "products", "rows"
# The part of a device function's name that stands for the dtype.
SHORT = {"float16": "f16", "bfloat16": "bf16"}


class TensorCoreKernel(NamedTuple):
    """How an operation is computed on tensor cores.

    numbers(spec): the candidates of each sampled number, the untuned kernel's first.
    launch(p, spec, numbers): the statement that launches the kernel; p: the function's parameters
    by name; numbers: the sampled number for each name.
    """

    numbers: Callable[[KernelSpec], dict[str, Sequence[int]]]
    launch: Callable[[Mapping[str, Any], KernelSpec, Mapping[str, int]], tirx.Stmt]


def warp_candidates(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of a block's warps, which share loads through the cache."""
    if spec.rank == 1:
        return {WARPS_1: (4, 2, 8, 1)}
    return {WARPS_0: (4, 2, 1), WARPS_1: (1, 2, 4)}


def warps_of(numbers: Mapping[str, int]) -> tuple[int, int]:
    """Return the warps of a block on the axes of rows and columns."""
    return numbers.get(WARPS_0, 1), numbers[WARPS_1]


@contextmanager
def grid(warp: WarpTile, resident_warps: int) -> Iterator[None]:
    """Run the `with` block in every warp whose tile has queries, after `warp.locate`.

    resident_warps: warps that one multiprocessor must be able to hold, which limits registers.
    """
    s = warp.s
    warps = math.prod(warp.tile.warps)
    with (
        s.threads("blockIdx.x", warp.tiles) as block,
        s.threads("blockIdx.y", warp.heads) as head,
        s.threads("blockIdx.z", warp.batch_size) as batch,
        s.threads("threadIdx.y", warps) as warp_index,
        s.threads("threadIdx.x", LANES) as lane,
        s.attribute("tirx.launch_bounds_min_blocks_per_sm", max(1, resident_warps // warps)),
    ):
        warp.locate(block, head, batch, warp_index, lane)
        with s.when(warp.has_queries):
            yield
