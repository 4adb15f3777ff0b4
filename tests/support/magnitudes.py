"""How large the terms are that a result sums up: what its rounding errors are relative to.

Each function takes the arguments of its namesake in `support.brute_force` and returns arrays
of the same names: the results if no two terms of a sum had opposite signs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from support import brute_force
from support.brute_force import Array, Results, heads_first, heads_last, softmax

_ARRAYS = (
    "query", "key", "value", "attn", "rpb", "additional_keys", "additional_values", "d_output",
    "d_lse", "d_attn",
)  # fmt: skip


def linear(function: Callable[..., Results], **arguments: Any) -> Results:
    """Return the size of `qk` and `av`, which are linear in each of their arrays."""
    sizes = function(**_absolute(arguments))
    return {name: np.where(np.isneginf(array), 0.0, array) for name, array in sizes.items()}


def attention(
    *,
    query: Array,
    key: Array,
    value: Array,
    scale: float,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    d_output: Array,
    d_lse: Array | None = None,
    **where: Any,
) -> Results:
    """Return the size of `attention`, in which the weights themselves are positive."""
    of_qk: dict[str, Any] = {
        "query": heads_first(query),
        "key": heads_first(key),
        "rpb": rpb,
        "additional_keys": None if additional_keys is None else heads_first(additional_keys),
        "scale": scale,
        **where,
    }
    weights, _ = softmax(brute_force.qk(**of_qk)["attn"])
    of_av = linear(
        brute_force.av,
        attn=weights,
        value=heads_first(value),
        additional_values=None if additional_values is None else heads_first(additional_values),
        d_output=heads_first(d_output),
        **where,
    )
    d_weights = of_av.pop("d_attn")
    d_logits = weights * (d_weights + (weights * d_weights).sum(-1, keepdims=True))
    if d_lse is not None:
        d_logits += weights * np.abs(np.moveaxis(d_lse, -1, 1))[..., None]
    sizes = linear(brute_force.qk, **of_qk, d_attn=d_logits)
    lse = np.moveaxis(sizes.pop("attn").max(-1) + 1.0, 1, -1)
    sizes |= of_av
    results = {name: a if name == "d_rpb" else heads_last(a) for name, a in sizes.items()}
    return results | {"lse": lse}


def _absolute(arguments: dict[str, Any]) -> dict[str, Any]:
    absolute = {
        name: np.abs(array)
        for name, array in arguments.items()
        if name in _ARRAYS and array is not None
    }
    if "scale" in arguments:
        absolute["scale"] = abs(arguments["scale"])
    return {**arguments, **absolute}
