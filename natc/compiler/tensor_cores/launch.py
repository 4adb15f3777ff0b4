"""Puts a kernel for tensor cores beside the scheduled one, as the last step of a schedule.

Schedule primitives move loops; none of them can spread a matrix product over the lanes of a warp.
So a schedule only records the sampled numbers, and the kernel is generated once it is complete.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize

from natc.compiler.annotations import annotated_numbers
from natc.compiler.tensor_cores.choice import ANNOTATION, KERNELS
from natc.spec import KernelSpec

_MOST_BLOCKS = 65535  # on a grid's second and third axis


def apply_tiles(function: tirx.PrimFunc, spec: KernelSpec, operation: str) -> tirx.PrimFunc:
    """Return the function with the kernel for tensor cores that its schedule asks for, if any.

    The scheduled kernel stays, for the calls that tiles cannot serve.
    """
    numbers = annotated_numbers(function, ANNOTATION)
    if not numbers:
        return function
    p = {parameter.name: parameter for parameter in function.params}
    root = function.body
    scheduled = root.block
    kernel = KERNELS[operation].launch(p, spec, numbers)
    body = tirx.IfThenElse(_fits(p, spec), kernel, scheduled.body)
    block = SBlock(
        scheduled.iter_vars, scheduled.reads, scheduled.writes, scheduled.name_hint, body,
        scheduled.init, scheduled.alloc_buffers, scheduled.match_buffers, scheduled.annotations,
    )  # fmt: skip
    return function.with_body(SBlockRealize(root.iter_values, root.predicate, block))


def _fits(p: dict[str, Any], spec: KernelSpec) -> Any:
    """Return whether tiles can serve a call: strides are 1, and heads and batches fit the grid."""
    batch, *_, heads, _ = p["qkv" if "qkv" in p else "query"].ty.shape
    fits = tirx.And(heads <= _MOST_BLOCKS, batch <= _MOST_BLOCKS)
    for axis in range(spec.rank):
        fits = tirx.And(fits, p[f"stride_{axis}"] == 1)
    return fits
