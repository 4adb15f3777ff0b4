"""`natten.functional` of 0.20 and 0.21: stride, grouped heads, `attention`, `merge_attentions`.

Arguments that choose among NATTEN's kernels, or tile them, are accepted and ignored; names of
backends that no release has are refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from natc import functional
from natc.compat.natten import attention
from natc.compat.natten.arguments import check_room, options_020
from natc.compat.natten.operators import named, variant
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError

_Tensor = Tensor | None
_PerAxis = Any
_RANKS = {"na1d": 1, "na2d": 2, "na3d": 3, "neighborhood_attention_generic": None}
_BACKENDS = ("blackwell-fna", "hopper-fna", "cutlass-fna", "flex-fna")
# Arguments of `attention` that change its result. NATTEN calls it for the additional tokens.
_MEANINGFUL = frozenset(
    ("is_causal", "scale", "return_lse", "seqlens_Q", "seqlens_KV", "cumulative_seqlen_Q",
     "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
)  # fmt: skip


def functions(release: Release) -> dict[str, Any]:
    """Return the contents of `natten.functional` in a release of 0.20 or 0.21."""
    # 0.20 has another last parameter than 0.21.5, which has one more than 0.21.0.
    absent = {} if release.number < (0, 21, 0) else {"try_fuse_additional_kv": False}
    if release.number < (0, 21, 5):
        absent["return_lse"] = False
    names = attention.functions(release)
    for name, rank in _RANKS.items():
        names[name] = variant(named(_function(rank, release.smallest), name), fixed=absent)
    return names


def _function(rank: int | None, smallest: int) -> Any:
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
        return_lse: bool = False,
    ) -> Any:
        axes = rank or query.ndim - 3
        if not 1 <= axes <= 3 or query.ndim != axes + 3:
            raise ArgumentError(
                f"query has {query.ndim} axes, shape {list(query.shape)}; it must have 4, 5 or 6: "
                "[batch, 1 to 3 spatial axes, heads, head_dim]."
            )
        _check_backend(backend, attention_kwargs)
        kernel_size, stride, dilation, is_causal = options_020(
            axes, kernel_size, stride, dilation, is_causal, smallest
        )
        check_room(kernel_size, dilation, query.shape[1:-2], ArgumentError)
        return functional.neighborhood_attention(
            query,
            key,
            value,
            kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=is_causal,
            # The releases read 0 as the default.
            scale=scale or None,
            additional_keys=additional_keys,
            additional_values=additional_values,
            return_lse=return_lse,
        )

    return na


def _check_backend(backend: str | None, attention_kwargs: dict[str, Any] | None) -> None:
    """Accept the backends that NATTEN has, and attention_kwargs that do not change the result.

    Raises:
        NotImplementedError: a backend that no release has.
        ArgumentError: attention_kwargs holds an argument that changes the result.
    """
    attention.check_backend("backend is ", backend, _BACKENDS)
    for name, value in (attention_kwargs or {}).items():
        if name in _MEANINGFUL:
            raise ArgumentError(
                f"attention_kwargs has {name}; NATTEN sets it itself for the additional tokens."
            )
        if name == "backend":
            attention.check_backend("attention_kwargs has backend=", value, attention.BACKENDS)
