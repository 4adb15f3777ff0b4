"""`natten.functional` of 0.17: options per axis, causal axes, and the fused `na1d` to `na3d`.

The fifth positional argument of the fused functions is the dilation; in 0.20 it is the stride.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from natc import functional
from natc.compat.natten.arguments import check_bias, check_window, flags, refuse_nested, sizes
from natc.compat.natten.operators import Operator, av, named, operator, qk
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError

_Tensor = Tensor | None
# In the releases: an integer or a tuple with one for each axis, and likewise a bool.
_PerAxis = Any
_FUSED = {1: functional.na1d, 2: functional.na2d, 3: functional.na3d}


def functions(release: Release) -> dict[str, Any]:
    """Return the operators of `natten.functional` in a release of 0.17."""
    names: dict[str, Any] = {}
    for rank in (1, 2, 3):
        classes = operators(rank)
        names |= {each.__name__: each for each in classes}
        made = _unfused(rank, *classes[:2])
        if release.number <= (0, 17, 4):
            made |= _deprecated(rank, *classes[:2])
        made |= fused(release, rank, classes[2])
        names |= {name.format(rank): named(f, name.format(rank)) for name, f in made.items()}
    return names


def operators(rank: int) -> tuple[type[Operator], type[Operator], type[Operator]]:
    """Return the autograd functions of one rank: qk, av and the fused one."""

    def of_qk(
        query: Tensor, key: Tensor, bias: _Tensor, additional_key: _Tensor, *where: Any
    ) -> Tensor:
        kernel_size, dilation, causal = _checked(rank, *where)
        check_bias(causal, bias)
        return qk(query, key, bias, additional_key, kernel_size, dilation, causal)

    def of_av(attn: Tensor, value: Tensor, additional_value: _Tensor, *where: Any) -> Tensor:
        return av(attn, value, additional_value, *_checked(rank, *where))

    def of_fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: _Tensor,
        kernel_size: _PerAxis,
        dilation: _PerAxis,
        is_causal: _PerAxis,
        scale: float,
        tiling_config: Any = None,
        tiling_config_backward: Any = None,
    ) -> tuple[Tensor, Tensor]:
        where = kernel_size, dilation, is_causal
        return _attend(rank, query, key, value, bias, *where, scale, return_lse=True)

    prefix = f"NeighborhoodAttention{rank}D"
    return (
        operator(f"{prefix}QKAutogradFunction", of_qk),
        operator(f"{prefix}AVAutogradFunction", of_av),
        operator(f"Fused{prefix}", of_fused),
    )


def _checked(
    rank: int, kernel_size: _PerAxis, dilation: _PerAxis, is_causal: _PerAxis
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    return (
        sizes("kernel_size", kernel_size, rank),
        sizes("dilation", dilation, rank),
        flags(is_causal, rank),
    )


def _attend(
    rank: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: _Tensor,
    kernel_size: _PerAxis,
    dilation: _PerAxis,
    is_causal: _PerAxis,
    scale: float | None,
    *,
    additional_keys: _Tensor = None,
    additional_values: _Tensor = None,
    return_lse: bool = False,
) -> Any:
    refuse_nested(query, key, value)
    kernel_size, dilation, is_causal = _checked(rank, kernel_size, dilation, is_causal)
    check_bias(is_causal, rpb)
    check_window(kernel_size, dilation, query.shape[1:-2])
    return _FUSED[rank](
        query,
        key,
        value,
        kernel_size,
        dilation=dilation,
        is_causal=is_causal,
        # 0 is the default, too.
        scale=scale or None,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
    )


def _unfused(rank: int, qk_class: type[Operator], av_class: type[Operator]) -> dict[str, Any]:
    def na_qk(
        query: Tensor,
        key: Tensor,
        kernel_size: _PerAxis,
        dilation: _PerAxis = 1,
        additional_keys: _Tensor = None,
        is_causal: _PerAxis = False,
        rpb: _Tensor = None,
    ) -> Tensor:
        return qk_class.apply(query, key, rpb, additional_keys, kernel_size, dilation, is_causal)

    def na_av(
        attn: Tensor,
        value: Tensor,
        kernel_size: _PerAxis,
        dilation: _PerAxis = 1,
        additional_values: _Tensor = None,
        is_causal: _PerAxis = False,
    ) -> Tensor:
        return av_class.apply(attn, value, additional_values, kernel_size, dilation, is_causal)

    # Rank 3 has no default for the dilation.
    def na_deep_av(
        attn: Tensor,
        value: Tensor,
        kernel_size: _PerAxis,
        dilation: _PerAxis,
        additional_values: _Tensor = None,
        is_causal: _PerAxis = False,
    ) -> Tensor:
        return av_class.apply(attn, value, additional_values, kernel_size, dilation, is_causal)

    return {"na{}d_qk": na_qk, "na{}d_av": na_av if rank < 3 else na_deep_av}


def _deprecated(rank: int, qk_class: type[Operator], av_class: type[Operator]) -> dict[str, Any]:
    """Return natten*dqkrpb, natten*dqk and natten*dav, gone in 0.17.5."""

    def qkrpb(query: Tensor, key: Tensor, rpb: _Tensor, kernel_size: int, dilation: int) -> Tensor:
        where = (kernel_size,) * rank, (dilation,) * rank, False
        return qk_class.apply(query, key, rpb, None, *where)

    def only_qk(query: Tensor, key: Tensor, kernel_size: int, dilation: int) -> Tensor:
        where = (kernel_size,) * rank, (dilation,) * rank, False
        return qk_class.apply(query, key, None, None, *where)

    def only_av(attn: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Tensor:
        where = (kernel_size,) * rank, (dilation,) * rank, False
        return av_class.apply(attn, value, None, *where)

    def deep_qkrpb(
        query: Tensor,
        key: Tensor,
        rpb: _Tensor,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
    ) -> Tensor:
        where = _deep(kernel_size_d, kernel_size), _deep(dilation_d, dilation), False
        return qk_class.apply(query, key, rpb, None, *where)

    def deep_qk(
        query: Tensor,
        key: Tensor,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
    ) -> Tensor:
        where = _deep(kernel_size_d, kernel_size), _deep(dilation_d, dilation), False
        return qk_class.apply(query, key, None, None, *where)

    def deep_av(
        attn: Tensor,
        value: Tensor,
        kernel_size_d: int,
        kernel_size: int,
        dilation_d: int,
        dilation: int,
    ) -> Tensor:
        where = _deep(kernel_size_d, kernel_size), _deep(dilation_d, dilation), False
        return av_class.apply(attn, value, None, *where)

    made = (deep_qkrpb, deep_qk, deep_av) if rank == 3 else (qkrpb, only_qk, only_av)
    return dict(zip(("natten{}dqkrpb", "natten{}dqk", "natten{}dav"), made))


def _deep(depth: int, others: int) -> tuple[int, int, int]:
    return depth, others, others


def fused(release: Release, rank: int, fused_class: type[Operator]) -> dict[str, Any]:
    """Return the fused function of one rank, which takes additional tokens from 0.17.4 on."""

    def early(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: _PerAxis,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        rpb: _Tensor = None,
        scale: float | None = None,
    ) -> Tensor:
        where = kernel_size, dilation, is_causal
        return fused_class.apply(query, key, value, rpb, *where, scale, None, None)[0]

    def with_tokens(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: _PerAxis,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        rpb: _Tensor = None,
        scale: float | None = None,
        additional_keys: _Tensor = None,
        additional_values: _Tensor = None,
        xformers_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        where = kernel_size, dilation, is_causal
        if additional_keys is None and additional_values is None:
            return fused_class.apply(query, key, value, rpb, *where, scale, None, None)[0]
        _check_xformers(xformers_kwargs)
        return _attend(
            rank,
            query,
            key,
            value,
            rpb,
            *where,
            scale,
            additional_keys=additional_keys,
            additional_values=additional_values,
        )

    return {"na{}d": with_tokens if release.number >= (0, 17, 4) else early}


def _check_xformers(given: dict[str, Any] | None) -> None:
    """Accept what chooses an implementation (op), refuse what would change the result."""
    for name, value in (given or {}).items():
        if name != "op" and value:
            raise ArgumentError(
                f"xformers_kwargs has {name}={value!r}; only op is accepted, and ignored, since "
                "natc attends to the additional tokens itself."
            )
