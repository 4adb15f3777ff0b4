"""Putting a kernel for tensor cores beside the scheduled one, as the last step of a schedule.

Schedule primitives move loops; none of them describes what the lanes of a warp hold of a matrix
product. So a schedule only names its numbers, and the kernel is written when it is complete.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize

from natc.compiler.tensor_cores.choice import ANNOTATION
from natc.compiler.tensor_cores.kernels import KERNELS
from natc.spec import KernelSpec

_MOST_BLOCKS = 65535  # on a grid's second and third axis


def apply_tiles(function: tirx.PrimFunc, spec: KernelSpec, operation: str) -> tirx.PrimFunc:
    """Return a scheduled function that launches the kernel its schedule asked for, if it did."""
    numbers = _numbers(function)
    if not numbers:
        return function
    p = {parameter.name: parameter for parameter in function.params}
    root = function.body
    other = root.block
    kernel = KERNELS[operation].launch(p, spec, numbers)
    body = tirx.IfThenElse(_fits(p, spec), kernel, other.body)
    block = SBlock(
        other.iter_vars, other.reads, other.writes, other.name_hint, body, other.init,
        other.alloc_buffers, other.match_buffers, other.annotations,
    )  # fmt: skip
    return function.with_body(SBlockRealize(root.iter_values, root.predicate, block))


def _numbers(function: tirx.PrimFunc) -> dict[str, int]:
    found: dict[str, int] = {}

    def read(block: SBlock) -> None:
        for key, value in block.annotations.items():
            if str(key).startswith(ANNOTATION):
                found[str(key).removeprefix(ANNOTATION)] = int(value)

    tvm_ffi.structural_walk(function.body, (SBlock, read))
    return found


def _fits(p: dict[str, Any], spec: KernelSpec) -> Any:
    """Return whether tiles can serve a call: a window begins a key after the last at most."""
    batch, *_, heads, _ = p["qkv" if "qkv" in p else "query"].ty.shape
    found = tirx.And(heads <= _MOST_BLOCKS, batch <= _MOST_BLOCKS)
    for axis in range(spec.rank):
        found = tirx.And(found, p[f"stride_{axis}"] == 1)
    return found
