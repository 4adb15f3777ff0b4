"""The definition of each operation of `natc.operations`."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from natc.spec import KernelSpec
from natc.te import backward, bias, unfused
from natc.te.exponential import Exponential
from natc.te.forward import forward


def _forward(
    with_lse: bool, packed: bool = False
) -> Callable[[KernelSpec, Exponential], tirx.PrimFunc]:
    def define(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
        return forward(spec, with_lse=with_lse, packed=packed, exponential=exponential)

    return define


_DEFINITIONS: dict[str, Callable[[KernelSpec, Exponential], tirx.PrimFunc]] = {
    "forward": _forward(with_lse=False),
    "forward_lse": _forward(with_lse=True),
    "forward_packed": _forward(with_lse=False, packed=True),
    "forward_lse_packed": _forward(with_lse=True, packed=True),
    "delta": backward.delta,
    "d_query": backward.d_query,
    "d_key": backward.d_key,
    "d_value": backward.d_value,
    "d_rpb": bias.d_rpb,
    "qk": unfused.qk,
    "av": unfused.av,
    "inverse_av": unfused.inverse_av,
    "sum_rpb": bias.sum_rpb,
}


def definition(operation: str, spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the unscheduled function of an operation, for any shape."""
    return _DEFINITIONS[operation](spec, exponential)
