"""The gradient of keys on tensor cores: of each key, its queries' gradients of logits times them.

The gradient of a logit is p * (d_output . value - delta); weights p and products of d_output and
value are laid out alike, and as the last product takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx

from natc.compiler.tensor_cores.inverse import Keys, QueryStep, numbers
from natc.compiler.tensor_cores.inverse_scores import (
    load_keys,
    packed,
    pairs,
    probabilities,
    products,
)
from natc.compiler.tensor_cores.inverse_sums import KeySums
from natc.compiler.tensor_cores.kernel import RESIDENT, grid, warps_of
from natc.compiler.tensor_cores.statements import Statements
from natc.compiler.tensor_cores.tile import Tile
from natc.spec import KernelSpec

__all__ = ["launch", "numbers"]


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of `d_key`.

    p: the function's parameters by name. numbers: those of `numbers`, one for each name.
    """
    # A gradient of a logit is some ten times smaller than d_output in large windows, and may be
    # larger than what float16 can hold.
    factor, small = (2.0**6, 2.0**-8) if spec.dtype == "float16" else (1.0, 1.0)
    place = Keys(Statements(), p, Tile(spec, *warps_of(numbers), 0))
    s = place.s
    with grid(place, numbers[RESIDENT]):
        place.attend()
        kv = place.head_kv()
        query = place.of_heads("query", spec.head_dim)
        d_output = place.of_heads("d_output", spec.value_dim)
        keys = load_keys(place, place.of_kv("key", spec.head_dim, kv))
        values = load_keys(place, place.of_kv("value", spec.value_dim, kv))

        def weights(step: QueryStep, factor: float) -> Any:
            found = probabilities(step, products(step, keys, query), factor)
            delta = step.spread(step.number("delta"))
            d_weights = products(step, values, d_output, [-delta[i] for i in range(4)])
            for _, index, _ in pairs():
                s.store(found, index, found[index] * d_weights[index])
            return packed(step, found)

        sums = KeySums(place, query)
        sums.gather(weights, factor, small)
        scale = p["scale"] * tirx.const(1 / factor, "float32")
        sums.store(place.of_heads("output", spec.head_dim), scale)
    return s.statement()
