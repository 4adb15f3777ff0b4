"""Adds a call of a kernel of tiles to a scheduled function, as the last step of its schedule.

A schedule only records the decisions of the kernel, which is generated once it is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tvm import tirx

from natc.compiler.annotations import annotated_numbers
from natc.compiler.cpu_tiles.plan import Plan, plan_for
from natc.compiler.cpu_tiles.shared_function import call_of
from natc.spec import KernelSpec

# A decision is annotated on the block `output` under this prefix and its name. Without the prefix
# `natc.`, by which decisions are read back from a trace.
ANNOTATION = "tile_of_queries."


def plan_of(function: tirx.PrimFunc, spec: KernelSpec) -> Plan | None:
    """Return the decisions that a schedule recorded for a kernel of tiles; None if it has none."""
    numbers = annotated_numbers(function, ANNOTATION)
    return plan_for(spec, numbers) if numbers else None


def decision_names() -> list[str]:
    """Return the names of the decisions: the fields of Plan but the spec."""
    return [field.name for field in fields(Plan) if field.name != "spec"]


def with_tiles(function: tirx.PrimFunc, plan: Plan) -> tirx.PrimFunc:
    """Return a function that calls the kernel of tiles if it serves the call, else `function`.

    The function's module needs the kernel, too: `shared_function.TILES`.
    """
    p = {parameter.name: parameter for parameter in function.params}
    body = tirx.IfThenElse(_fits(p, plan.spec), call_of(p, plan.spec), function.body)
    return function.with_body(body)


def _fits(p: Mapping[str, Any], spec: KernelSpec) -> Any:
    """Return whether tiles serve a call: each dilation group is as long as a window on each axis.

    Strides are 1, and no axis is causal.
    """
    _, *sizes = p["qkv" if "qkv" in p else "query"].ty.shape[: 1 + spec.rank]
    fits = tirx.const(True, "bool")
    for axis, (size, kernel_size) in enumerate(zip(sizes, spec.kernel_size)):
        shortest = tirx.truncdiv(size, p[f"dilation_{axis}"])
        fits = tirx.And(fits, shortest >= kernel_size)
        fits = tirx.And(fits, p[f"stride_{axis}"] == 1)
        fits = tirx.And(fits, p[f"is_causal_{axis}"] == 0)
    return fits
