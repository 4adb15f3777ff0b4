"""`natten.functional` of 0.15: rank 3, separate functions for biases, additional tokens.

Functions of rank 3 take one kernel size and dilation for the depth, another for height and width.
"""

from __future__ import annotations

from collections.abc import Callable
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
        return qk(query, key, bias, additional_key, *_window(rank, where))

    def of_av(attn: Tensor, value: Tensor, additional_value: _Tensor, *where: int) -> Tensor:
        return av(attn, value, additional_value, *_window(rank, where))

    prefix = f"NeighborhoodAttention{rank}D"
    return (
        operator(f"{prefix}QKAutogradFunction", of_qk),
        operator(f"{prefix}AVAutogradFunction", of_av),
    )


def of_rank(rank: int, qk_class: type[Operator], av_class: type[Operator]) -> dict[str, Any]:
    """Return na*d_qk, na*d_qk_with_bias, na*d_av and natten*dqkrpb of `rank`."""
    functions = _deep(qk_class, av_class) if rank == 3 else _flat(qk_class, av_class)
    return {name.format(rank): named(f, name.format(rank)) for name, f in functions.items()}


def _window(rank: int, where: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if rank < 3:
        kernel_size, dilation = where
        return (kernel_size,) * rank, (dilation,) * rank
    kernel_size_d, kernel_size, dilation_d, dilation = where
    return (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)


def _flat(qk_class: type[Operator], av_class: type[Operator]) -> dict[str, Any]:
    def na_qk_with_bias(
        query: Tensor,
        key: Tensor,
        bias: _Tensor,
        kernel_size: int,
        dilation: int,
        additional_keys: _Tensor = None,
    ) -> Tensor:
        return qk_class.apply(query, key, bias, additional_keys, kernel_size, dilation)

    def na_av(
        attn: Tensor,
        value: Tensor,
        kernel_size: int,
        dilation: int,
        additional_values: _Tensor = None,
    ) -> Tensor:
        return av_class.apply(attn, value, additional_values, kernel_size, dilation)

    return _by_name(na_qk_with_bias, na_av)


def _deep(qk_class: type[Operator], av_class: type[Operator]) -> dict[str, Any]:
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
        where = kernel_size_d, kernel_size, dilation_d, dilation
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
        where = kernel_size_d, kernel_size, dilation_d, dilation
        return av_class.apply(attn, value, additional_values, *where)

    return _by_name(na_qk_with_bias, na_av)


def _by_name(with_bias: Callable[..., Any], na_av: Callable[..., Any]) -> dict[str, Any]:
    """Return the functions of a rank, those without a bias or tokens as variants."""
    return {
        "na{}d_qk": variant(with_bias, fixed={"bias": None}),
        "na{}d_qk_with_bias": with_bias,
        "na{}d_av": na_av,
        "natten{}dqkrpb": variant(with_bias, {"additional_keys": None}, {"bias": "rpb"}),
    }
