"""The definition of each operation of `natc.operations`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from natc.compiler.te import backward, bias, qk_av
from natc.compiler.te.exponential import Exponential
from natc.compiler.te.forward import forward
from natc.operations import OPERATIONS
from natc.spec import KernelSpec

_DEFINITIONS: dict[str, Callable[[KernelSpec, Exponential], tirx.PrimFunc]] = {
    "delta": backward.delta,
    "d_query": backward.d_query,
    "d_key": backward.d_key,
    "d_value": backward.d_value,
    "d_rpb": bias.d_rpb,
    "qk": qk_av.qk,
    "av": qk_av.av,
    "inverse_av": qk_av.inverse_av,
    "sum_rpb": bias.sum_rpb,
}


def definition(
    operation: str,
    spec: KernelSpec,
    exponential: Exponential,
    *,
    example: Sequence[int] | None = None,
) -> tirx.PrimFunc:
    """Return the unscheduled function of an operation, for any shape.

    example: a fixed shape instead, for the forward only (`natc.compiler.te.problem`).
    """
    if OPERATIONS[operation].family == "forward":
        return forward(operation, spec, exponential, example=example)
    return _DEFINITIONS[operation](spec, exponential)
