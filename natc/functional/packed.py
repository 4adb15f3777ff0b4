"""Fused attention of query, key and value in one tensor, as one linear layer computes them."""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast, overload

from torch import Tensor

from natc.errors import ArgumentError
from natc.functional import arguments
from natc.functional.fused import Flags, PerAxis
from natc.ops import run_forward_lse_packed, run_forward_packed


class _PackedAttention(Protocol):
    """The signature of this module's functions; the type of the result depends on return_lse."""

    @overload
    def __call__(
        self, qkv: Tensor, kernel_size: PerAxis, *, stride: PerAxis = ..., dilation: PerAxis = ...,
        is_causal: Flags = ..., scale: float | None = ..., rpb: Tensor | None = ...,
        return_lse: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def __call__(
        self, qkv: Tensor, kernel_size: PerAxis, *, stride: PerAxis = ..., dilation: PerAxis = ...,
        is_causal: Flags = ..., scale: float | None = ..., rpb: Tensor | None = ...,
        return_lse: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @overload
    def __call__(
        self, qkv: Tensor, kernel_size: PerAxis, *, stride: PerAxis = ..., dilation: PerAxis = ...,
        is_causal: Flags = ..., scale: float | None = ..., rpb: Tensor | None = ...,
        return_lse: bool,
    ) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def _typed(function: Any) -> _PackedAttention:
    return cast(_PackedAttention, function)


@_typed
def na1d_qkvpacked(
    qkv: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    **unsupported: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return 1-D neighborhood attention of qkv `[B, length, 3, heads, head_dim]`.

    Everything else is as for `na2d_qkvpacked`.
    """
    if unsupported:
        arguments.refuse(unsupported)
    options = (kernel_size, stride, dilation, is_causal, scale)
    return _attend(1, qkv, options, rpb, return_lse)


@_typed
def na2d_qkvpacked(
    qkv: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    **unsupported: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return `natc.na2d(*qkv.unbind(-3), kernel_size, ...)`; kernels read qkv without a copy.

    Args:
        qkv: query, key and value in this order, `[B, height, width, 3, heads, head_dim]`: the
            output of a linear layer with 3 * heads * head_dim channels, reshaped. float32,
            float16, bfloat16 or float64.
        kernel_size, stride, dilation, is_causal, scale, rpb, return_lse, and Raises: as for
            `natc.neighborhood_attention`.

    Returns:
        output `[B, height, width, heads, head_dim]` in the dtype of qkv, or (output, lse).
    """
    if unsupported:
        arguments.refuse(unsupported)
    options = (kernel_size, stride, dilation, is_causal, scale)
    return _attend(2, qkv, options, rpb, return_lse)


@_typed
def na3d_qkvpacked(
    qkv: Tensor,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    **unsupported: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return 3-D neighborhood attention of qkv `[B, depth, height, width, 3, heads, head_dim]`.

    Everything else is as for `na2d_qkvpacked`.
    """
    if unsupported:
        arguments.refuse(unsupported)
    options = (kernel_size, stride, dilation, is_causal, scale)
    return _attend(3, qkv, options, rpb, return_lse)


def _attend(rank: int, qkv: Any, unchecked: Any, rpb: Any, return_lse: bool) -> Any:
    """Check the arguments and return attention; unchecked: see `arguments.options`."""
    (qkv,) = arguments.tensors(("qkv", qkv))
    arguments.axes("qkv", qkv, rank, "[batch, {}, 3, heads, head_dim]", extra=1)
    *_, three, heads, head_dim = qkv.shape
    if three != 3:
        raise ArgumentError(
            f"qkv has shape {list(qkv.shape)}; its axis before the heads must be 3: query, key "
            "and value."
        )
    options = arguments.options(rank, head_dim, unchecked)
    if rpb is not None:
        rpb = arguments.bias(rpb, qkv, heads, options.kernel_size)
    run = run_forward_lse_packed if return_lse else run_forward_packed
    return run(qkv, rpb, options)
