"""The gradient of keys on tensor cores: for each key, sums gradient of the logit times query.

The gradient of a logit is p * (d_output . value - delta). Probabilities p and products of d_output
and value have the same layout, which is also the layout that the last product needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx

from natc.compiler.statements import Statements
from natc.compiler.tensor_cores.inverse import KeyTile, QueryStep
from natc.compiler.tensor_cores.inverse_scores import (
    load_keys,
    packed,
    pairs,
    probabilities,
    products,
)
from natc.compiler.tensor_cores.inverse_sums import KeySums
from natc.compiler.tensor_cores.kernel import RESIDENT, grid, warps_of
from natc.compiler.tensor_cores.tile import Tile
from natc.spec import KernelSpec


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of `d_key` (`TensorCoreKernel`)."""
    # In large windows a gradient of a logit is some ten times smaller than d_output, hence the
    # factor. If a product exceeds what float16 can hold, the second attempt takes `small`.
    factor, small = (2.0**6, 2.0**-8) if spec.dtype == "float16" else (1.0, 1.0)
    warp = KeyTile(Statements(), p, Tile(spec, *warps_of(numbers), 0))
    s = warp.s
    with grid(warp, numbers[RESIDENT]):
        warp.attend()
        kv = warp.head_kv()
        query = warp.query_tensor("query", spec.head_dim)
        d_output = warp.query_tensor("d_output", spec.value_dim)
        keys = load_keys(warp, warp.kv_tensor("key", spec.head_dim, kv))
        values = load_keys(warp, warp.kv_tensor("value", spec.value_dim, kv))

        def weights(step: QueryStep, factor: float) -> Any:
            gradients = probabilities(step, products(step, keys, query), factor)
            delta = step.spread(step.scalar("delta"))
            d_weights = products(step, values, d_output, [-delta[i] for i in range(4)])
            for _, index, _ in pairs():
                s.store(gradients, index, gradients[index] * d_weights[index])
            return packed(step, gradients)

        sums = KeySums(warp, query)
        sums.gather(weights, factor, small)
        scale = p["scale"] * tirx.const(1 / factor, "float32")
        sums.store(warp.query_tensor("output", spec.head_dim), scale)
    return s.statement()
