"""`natten.functional` of 0.20 and 0.21: stride, grouped heads, `attention`, `merge_attentions`.

Arguments that choose among NATTEN's kernels, or tile them, are accepted and ignored; names of
backends that no release has are refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from natc import functional
from natc.compat.natten.arguments import check_room, flags, sizes
from natc.compat.natten.attention import BACKENDS as ATTENTION_BACKENDS
from natc.compat.natten.attention import attention_functions, merge_functions
from natc.compat.natten.operators import named
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError

_Tensor = Tensor | None
_PerAxis = Any
_RANKS = {"na1d": 1, "na2d": 2, "na3d": 3, "neighborhood_attention_generic": None}
_BACKENDS = ("blackwell-fna", "hopper-fna", "cutlass-fna", "flex-fna")
# Of `attention`, which NATTEN calls for the additional tokens: what is no matter of kernels.
_MEANINGFUL = frozenset(
    ("is_causal", "scale", "return_lse", "seqlens_Q", "seqlens_KV", "cumulative_seqlen_Q",
     "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
)  # fmt: skip


def functions(release: Release) -> dict[str, Any]:
    """Return the names of `natten.functional` in a release of 0.20 or 0.21."""
    names = {**attention_functions(release), **merge_functions(release)}
    return names | {name: named(_of_rank(release, rank), name) for name, rank in _RANKS.items()}


def _of_rank(release: Release, rank: int | None) -> Any:
    if release.number < (0, 21, 0):
        return _of_020(rank)
    return _of_021(rank) if release.number < (0, 21, 5) else _with_lse(rank)


def _attend(
    rank: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: _PerAxis,
    stride: _PerAxis,
    dilation: _PerAxis,
    is_causal: _PerAxis,
    scale: float | None,
    additional_keys: _Tensor,
    additional_values: _Tensor,
    attention_kwargs: dict[str, Any] | None,
    backend: str | None,
    return_lse: bool,
) -> Any:
    rank = rank or query.ndim - 3
    if not 1 <= rank <= 3 or query.ndim != rank + 3:
        raise ArgumentError(
            f"query has {query.ndim} axes, shape {list(query.shape)}; it must have 4, 5 or 6: "
            "[batch, 1 to 3 spatial axes, heads, head_dim]."
        )
    if backend is not None and backend not in _BACKENDS:
        raise NotImplementedError(f"backend is {backend!r}; it must be one of {_BACKENDS}.")
    _check_attention_kwargs(attention_kwargs)
    kernel_size = sizes("kernel_size", kernel_size, rank, at_least=2)
    dilation = sizes("dilation", dilation, rank)
    check_room(kernel_size, dilation, query.shape[1:-2], ArgumentError)
    return functional.neighborhood_attention(
        query,
        key,
        value,
        kernel_size,
        stride=sizes("stride", stride, rank),
        dilation=dilation,
        is_causal=flags(is_causal, rank),
        # 0 is the default, too.
        scale=scale or None,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
    )


def _check_attention_kwargs(given: dict[str, Any] | None) -> None:
    for name, value in (given or {}).items():
        if name in _MEANINGFUL:
            raise ArgumentError(
                f"attention_kwargs has {name}; NATTEN sets it itself for the additional tokens."
            )
        if name == "backend" and value is not None and value not in ATTENTION_BACKENDS:
            raise NotImplementedError(
                f"attention_kwargs has backend={value!r}; it must be one of {ATTENTION_BACKENDS}."
            )


def _of_020(rank: int | None) -> Any:
    def na(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: _PerAxis,
        stride: _PerAxis = 1,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        scale: float | None = None,
        additional_keys: _Tensor = None,
        additional_values: _Tensor = None,
        attention_kwargs: dict[str, Any] | None = None,
        backend: str | None = None,
        q_tile_shape: Any = None,
        kv_tile_shape: Any = None,
        backward_q_tile_shape: Any = None,
        backward_kv_tile_shape: Any = None,
        backward_kv_splits: Any = None,
        backward_use_pt_reduction: bool = False,
        run_persistent_kernel: bool = True,
        kernel_schedule: Any = None,
        torch_compile: bool = False,
        try_fuse_additional_kv: bool = False,
    ) -> Tensor:
        return _attend(
            rank, query, key, value, kernel_size, stride, dilation, is_causal, scale,
            additional_keys, additional_values, attention_kwargs, backend, False,
        )  # fmt: skip

    return na


def _of_021(rank: int | None) -> Any:
    def na(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: _PerAxis,
        stride: _PerAxis = 1,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        scale: float | None = None,
        additional_keys: _Tensor = None,
        additional_values: _Tensor = None,
        attention_kwargs: dict[str, Any] | None = None,
        backend: str | None = None,
        q_tile_shape: Any = None,
        kv_tile_shape: Any = None,
        backward_q_tile_shape: Any = None,
        backward_kv_tile_shape: Any = None,
        backward_kv_splits: Any = None,
        backward_use_pt_reduction: bool = False,
        run_persistent_kernel: bool = True,
        kernel_schedule: Any = None,
        torch_compile: bool = False,
    ) -> Tensor:
        return _attend(
            rank, query, key, value, kernel_size, stride, dilation, is_causal, scale,
            additional_keys, additional_values, attention_kwargs, backend, False,
        )  # fmt: skip

    return na


def _with_lse(rank: int | None) -> Any:
    def na(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: _PerAxis,
        stride: _PerAxis = 1,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        scale: float | None = None,
        additional_keys: _Tensor = None,
        additional_values: _Tensor = None,
        attention_kwargs: dict[str, Any] | None = None,
        backend: str | None = None,
        q_tile_shape: Any = None,
        kv_tile_shape: Any = None,
        backward_q_tile_shape: Any = None,
        backward_kv_tile_shape: Any = None,
        backward_kv_splits: Any = None,
        backward_use_pt_reduction: bool = False,
        run_persistent_kernel: bool = True,
        kernel_schedule: Any = None,
        torch_compile: bool = False,
        return_lse: bool = False,
    ) -> Any:
        return _attend(
            rank, query, key, value, kernel_size, stride, dilation, is_causal, scale,
            additional_keys, additional_values, attention_kwargs, backend, return_lse,
        )  # fmt: skip

    return na
