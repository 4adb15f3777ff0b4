"""Which operations have a kernel for tensor cores."""

from __future__ import annotations

from natc.compiler.tensor_cores import d_key, d_query, d_rpb, d_value, forward
from natc.compiler.tensor_cores.kernel import TensorCoreKernel
from natc.operations import OPERATIONS

_FORWARD = TensorCoreKernel(forward.numbers, forward.launch)
KERNELS: dict[str, TensorCoreKernel] = {
    **{name: _FORWARD for name, entry in OPERATIONS.items() if entry.family == "forward"},
    "d_key": TensorCoreKernel(d_key.numbers, d_key.launch),
    "d_value": TensorCoreKernel(d_value.numbers, d_value.launch),
    "d_query": TensorCoreKernel(d_query.numbers, d_query.launch),
    "d_rpb": TensorCoreKernel(d_rpb.numbers, d_rpb.launch),
}
