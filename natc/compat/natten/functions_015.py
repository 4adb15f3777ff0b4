"""`natten.functional` of 0.15: rank 3, separate functions for biases, additional tokens.

Functions of rank 3 take one kernel size and dilation for the depth, another for height and width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from natc.compat.natten.operators import Operator, av, named, operator, qk, variant

_Tensor = Tensor | None


def functions() -> dict[str, Any]:
    """Return the contents of `natten.functional` in 0.15."""
    names: dict[str, Any] = {}
    for rank in (1, 2, 3):
        qk_name, av_name = (
            f"NeighborhoodAttention{rank}D{kind}AutogradFunction" for kind in ("QK", "AV")
        )
        qk_class, av_class = operators(rank)
        names |= {qk_name: qk_class, av_name: av_class}
        names |= of_rank(rank, qk_class, av_class)
        for kind in ("qk", "av"):
            names[f"natten{rank}d{kind}"] = names[f"na{rank}d_{kind}"]
    return names


def operators(rank: int) -> tuple[type[Operator], type[Operator]]:
    """Return the autograd functions of `rank`, qk and av; `where` holds sizes and dilations."""

    def of_qk(
        query: Tensor, key: Tensor, bias: _Tensor, additional_key: _Tensor, *where: int
    ) -> Tensor:
        return qk(rank, query, key, bias, additional_key, *_window(*where))

    def of_av(attn: Tensor, value: Tensor, additional_value: _Tensor, *where: int) -> Tensor:
        return av(rank, attn, value, additional_value, *_window(*where))

    prefix = f"NeighborhoodAttention{rank}D"
    return (
        operator(f"{prefix}QKAutogradFunction", of_qk),
        operator(f"{prefix}AVAutogradFunction", of_av),
    )


def _window(*where: int) -> tuple[Any, Any]:
    """Return kernel_size and dilation, per axis if the depth has its own."""
    if len(where) == 2:
        return where
    kernel_size_d, kernel_size, dilation_d, dilation = where
    return (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)


def of_rank(rank: int, qk_class: type[Operator], av_class: type[Operator]) -> dict[str, Any]:
    """Return na*d_qk, na*d_qk_with_bias, na*d_av and natten*dqkrpb of `rank`."""

    def in_order(kernel_size_d: Any, kernel_size: Any, dilation_d: Any, dilation: Any) -> Any:
        if rank < 3:
            return kernel_size, dilation
        return kernel_size_d, kernel_size, dilation_d, dilation

    def na_qk_with_bias(
        query: Tensor,
        key: Tensor,
        bias: _Tensor,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
        additional_keys: _Tensor = None,
    ) -> Tensor:
        where = in_order(kernel_size_d, kernel_size, dilation_d, dilation)
        return qk_class.apply(query, key, bias, additional_keys, *where)

    def na_av(
        attn: Tensor,
        value: Tensor,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
        additional_values: _Tensor = None,
    ) -> Tensor:
        where = in_order(kernel_size_d, kernel_size, dilation_d, dilation)
        return av_class.apply(attn, value, additional_values, *where)

    depth = {} if rank == 3 else {"kernel_size_d": None, "dilation_d": None}
    functions = {
        f"na{rank}d_qk": variant(na_qk_with_bias, {**depth, "bias": None}),
        f"na{rank}d_qk_with_bias": variant(na_qk_with_bias, depth),
        f"na{rank}d_av": variant(na_av, depth),
        f"natten{rank}dqkrpb": variant(
            na_qk_with_bias, {**depth, "additional_keys": None}, {"bias": "rpb"}
        ),
    }
    return {name: named(function, name) for name, function in functions.items()}
