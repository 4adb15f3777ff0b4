"""The gradient of values on tensor cores: for each key, sums probability times d_output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx

from natc.compiler.statements import Statements
from natc.compiler.tensor_cores.inverse import KeyTile, QueryStep
from natc.compiler.tensor_cores.inverse_scores import load_keys, packed, probabilities, products
from natc.compiler.tensor_cores.inverse_sums import KeySums
from natc.compiler.tensor_cores.kernel import RESIDENT, grid, warps_of
from natc.compiler.tensor_cores.tile import Tile
from natc.spec import KernelSpec


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of `d_value` (`TensorCoreKernel`)."""
    # A probability is at most 1: this factor keeps most digits of small ones.
    factor = 2.0**15 if spec.dtype == "float16" else 1.0
    warp = KeyTile(Statements(), p, Tile(spec, *warps_of(numbers), 0))
    with grid(warp, numbers[RESIDENT]):
        warp.attend()
        query = warp.query_tensor("query", spec.head_dim)
        keys = load_keys(warp, warp.kv_tensor("key", spec.head_dim, warp.head_kv()))

        def weights(step: QueryStep, factor: float) -> Any:
            return packed(step, probabilities(step, products(step, keys, query), factor))

        sums = KeySums(warp, warp.query_tensor("d_output", spec.value_dim))
        sums.gather(weights, factor, factor)
        sums.store(warp.query_tensor("output", spec.value_dim), tirx.const(1 / factor, "float32"))
    return warp.s.statement()
