"""`natten.functional` of 0.17: options per axis, causal axes, and the fused `na1d` to `na3d`.

The fifth positional argument of the fused functions is the dilation; since 0.20 it is the stride.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from natc import functional
from natc.compat.natten import functions_015
from natc.compat.natten.arguments import check_bias, check_window, options_017, refuse_nested
from natc.compat.natten.operators import Operator, av, is_tracing, named, operator, qk, variant
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError

_Tensor = Tensor | None
# An integer or a tuple of one per axis; likewise a bool.
_PerAxis = Any
_FUSED = {1: functional.na1d, 2: functional.na2d, 3: functional.na3d}


def functions(release: Release) -> dict[str, Any]:
    """Return the contents of `natten.functional` in a release of 0.17."""
    names: dict[str, Any] = {}
    for rank in (1, 2, 3):
        classes = operators(rank, even=release.takes_even)
        names |= {each.__name__: each for each in classes}
        by_name = _unfused(rank, *classes[:2])
        if release.number <= (0, 17, 4):
            by_name |= _deprecated(rank)
        by_name["na{}d"] = _fused(release, rank, classes[2])
        names |= {name.format(rank): named(f, name.format(rank)) for name, f in by_name.items()}
    return names


def operators(
    rank: int, *, even: bool = False
) -> tuple[type[Operator], type[Operator], type[Operator]]:
    """Return the autograd functions of `rank`: qk, av, and fused attention.

    even: whether the fused function takes even kernel sizes, as from 0.17.5 on.
    """

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
        return _attend(rank, query, key, value, bias, *where, scale, even=even, return_lse=True)

    prefix = f"NeighborhoodAttention{rank}D"
    return (
        operator(f"{prefix}QKAutogradFunction", functools.partial(qk, rank)),
        operator(f"{prefix}AVAutogradFunction", functools.partial(av, rank)),
        operator(f"Fused{prefix}", of_fused),
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
    even: bool,
    smallest: int = 2,
    **more: Any,
) -> Any:
    """Check the options as 0.17 does and return fused attention: `natc.na2d` and its likes.

    even: whether even kernel sizes are taken, without a bias. smallest: the least kernel size.
    more: further arguments of `natc.na2d`.
    """
    refuse_nested(query, key, value)
    kernel_size, dilation, is_causal = options_017(rank, kernel_size, dilation, is_causal)
    check_bias(is_causal, rpb)
    spatial = query.shape[1:-2]
    check_window(kernel_size, dilation, spatial, even=even and rpb is None, smallest=smallest)
    return _FUSED[rank](
        query,
        key,
        value,
        kernel_size,
        dilation=dilation,
        is_causal=is_causal,
        # The releases read 0 as the default.
        scale=scale or None,
        rpb=rpb,
        **more,
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

    if rank == 3:
        # Without the first: the dilation of na3d_av has no default.
        na_av.__defaults__ = (None, False)
    return {"na{}d_qk": na_qk, "na{}d_av": na_av}


def _deprecated(rank: int) -> dict[str, Any]:
    """Return natten*dqkrpb, natten*dqk and natten*dav as in 0.15; 0.17.5 removed them."""
    of_015 = functions_015.of_rank(rank, *functions_015.operators(rank))
    return {
        "natten{}dqkrpb": of_015[f"natten{rank}dqkrpb"],
        "natten{}dqk": variant(of_015[f"na{rank}d_qk"], {"additional_keys": None}),
        "natten{}dav": variant(of_015[f"na{rank}d_av"], {"additional_values": None}),
    }


def _fused(release: Release, rank: int, fused_class: type[Operator]) -> Any:
    """Return the fused function of `rank`; it takes additional tokens from 0.17.4 on."""

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
        where = kernel_size, dilation, is_causal, scale
        if additional_keys is not None or additional_values is not None:
            _check_xformers(xformers_kwargs)
        elif is_tracing():
            # A trace shows the operator of the release.
            return fused_class.apply(query, key, value, rpb, *where, None, None)[0]
        return _attend(
            rank,
            query,
            key,
            value,
            rpb,
            *where,
            even=release.takes_even,
            smallest=release.smallest,
            additional_keys=additional_keys,
            additional_values=additional_values,
        )

    if release.number >= (0, 17, 4):
        return with_tokens
    tokens = ("additional_keys", "additional_values", "xformers_kwargs")
    return variant(with_tokens, fixed=dict.fromkeys(tokens))


def _check_xformers(xformers_kwargs: dict[str, Any] | None) -> None:
    """Accept `op`, which chooses an implementation; refuse arguments that change the result."""
    for name, value in (xformers_kwargs or {}).items():
        if name != "op" and value:
            raise ArgumentError(
                f"xformers_kwargs has {name}={value!r}; only op is accepted, and ignored, since "
                "natc attends to the additional tokens itself."
            )
