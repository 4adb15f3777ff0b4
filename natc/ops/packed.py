"""Operators of packed tensors: query, key and value in one.

One linear layer computes such a tensor, and a kernel reads it without a copy. The first
derivative runs the operator `backward_packed`, which writes one gradient of all three. Higher
derivatives come from the operator `backward`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from natc.dispatch import fused_backward, fused_forward
from natc.ops.fused import run_backward
from natc.ops.library import (
    Function,
    apply,
    as_in_the_forward,
    define,
    differentiable,
    first_of,
    library,
    run_and_keep,
)

_TENSORS = "Tensor qkv, Tensor? rpb"

forward_packed = define("forward_packed", _TENSORS, "Tensor", fused_forward.forward_packed)
forward_lse_packed = define(
    "forward_lse_packed", _TENSORS, "(Tensor, Tensor)", fused_forward.forward_lse_packed
)
backward_packed = define(
    "backward_packed",
    f"Tensor d_output, Tensor? d_lse, {_TENSORS}, Tensor output, Tensor lse, bool[] wanted",
    "(Tensor, Tensor)",
    fused_backward.backward_packed,
)


def _empty_output(qkv: Tensor) -> Tensor:
    return qkv.new_empty((*qkv.shape[:-3], *qkv.shape[-2:]))


@torch.library.register_fake(forward_packed, lib=library)
def _(qkv: Tensor, *_: Any) -> Tensor:
    return _empty_output(qkv)


@torch.library.register_fake(forward_lse_packed, lib=library)
def _(qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    output = _empty_output(qkv)
    return output, fused_forward.empty_lse(output)


@torch.library.register_fake(backward_packed, lib=library)
def _(
    d_output: Tensor,
    d_lse: Tensor | None,
    qkv: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    *_: Any,
) -> tuple[Tensor, Tensor]:
    d_qkv = qkv.new_empty(qkv.shape if wanted[0] else 0)
    d_rpb = qkv.new_empty(0) if rpb is None or not wanted[1] else rpb.new_empty(rpb.shape)
    return d_qkv, d_rpb


class _PackedAttentionFunction(Function):
    """`forward_lse_packed`, differentiable; it saves only its inputs and results."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], *arguments: Any) -> Any:
        return run_and_keep(ctx, run, 2, arguments)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        qkv, rpb, output, lse = ctx.saved_tensors
        if d_output is None and d_lse is None:
            return (None,) * 4
        if d_output is None:
            d_output = torch.zeros_like(output)
        wanted = of_qkv, of_rpb = ctx.needs_input_grad[1:3]
        with as_in_the_forward(ctx):
            d_qkv, d_rpb = run_backward_packed(
                d_output, d_lse, qkv, rpb, output, lse, wanted, ctx.options
            )
        return (None, d_qkv if of_qkv else None, d_rpb if of_rpb else None, None)


def _of_parts(run: Callable[..., Any], *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return `backward_packed` by the operator `backward`, which has derivatives."""
    return fused_backward.packed_by_parts(run_backward, *arguments)


def _composed(run: Callable[..., Any], qkv: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return (output, lse) of packed tensors by the reference, whose operations torch derives."""
    query, key, value = qkv.unbind(-3)
    return fused_forward.composed(query, key, value, *arguments)


run_forward_packed = differentiable(
    forward_packed,
    fused_forward.forward_packed,
    2,
    with_gradient=first_of(
        forward_lse_packed,
        _PackedAttentionFunction,
        fused_forward.forward_packed,
        fused_forward.forward_lse_packed,
    ),
    with_tangent=lambda *arguments: _composed(*arguments)[0],
)
run_forward_lse_packed = differentiable(
    forward_lse_packed,
    fused_forward.forward_lse_packed,
    2,
    with_gradient=functools.partial(apply, _PackedAttentionFunction),
    with_tangent=_composed,
)
run_backward_packed = differentiable(
    backward_packed,
    fused_backward.backward_packed,
    6,
    with_gradient=_of_parts,
    with_tangent=_of_parts,
)
