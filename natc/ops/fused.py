"""The operators `forward`, `forward_lse` and `backward`: schemas, shapes, derivatives.

`forward` and `forward_lse` are two operators because an operator has a fixed number of results.
The first derivative runs the operator `backward` on the results of `forward_lse`. Higher
derivatives and forward-mode derivatives run on the reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from natc.dispatch import fused_backward, fused_forward
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

_TENSORS = "Tensor query, Tensor key, Tensor value, Tensor? rpb"

forward = define("forward", _TENSORS, "Tensor", fused_forward.forward)
forward_lse = define("forward_lse", _TENSORS, "(Tensor, Tensor)", fused_forward.forward_lse)
backward = define(
    "backward",
    f"Tensor d_output, Tensor? d_lse, {_TENSORS}, Tensor output, Tensor lse, bool[] wanted",
    "(Tensor, Tensor, Tensor, Tensor)",
    fused_backward.backward,
)


@torch.library.register_fake(forward, lib=library)
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.register_fake(forward_lse, lib=library)
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty((*query.shape[:-1], value.shape[-1])), fused_forward.empty_lse(query)


@torch.library.register_fake(backward, lib=library)
def _(
    d_output: Tensor,
    d_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    *_: Any,
) -> tuple[Tensor, ...]:
    return tuple(
        query.new_empty(0) if t is None or not flag else t.new_empty(t.shape)
        for t, flag in zip((query, key, value, rpb), wanted)
    )


class _AttentionFunction(Function):
    """`forward_lse`, differentiable; it saves only its inputs and results."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], *arguments: Any) -> Any:
        return run_and_keep(ctx, run, 4, arguments)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        if d_output is None and d_lse is None:
            return (None,) * 6
        if d_output is None:
            d_output = torch.zeros_like(saved[4])
        wanted = ctx.needs_input_grad[1:5]
        with as_in_the_forward(ctx):
            gradients = run_backward(d_output, d_lse, *saved, wanted, ctx.options)
        return (None, *(t if flag else None for t, flag in zip(gradients, wanted)), None)


class _Backward(Function):
    """`backward`, differentiable: its gradients are the reference's."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], *arguments: Any) -> Any:
        ctx.set_materialize_grads(False)
        # Not output and lse: they are functions of query, key, value and rpb.
        ctx.save_for_backward(*arguments[:6])
        *_, ctx.wanted, ctx.options = arguments
        return run(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        directions = [grad if flag else None for grad, flag in zip(grads, ctx.wanted)]
        needed = ctx.needs_input_grad[1:7]
        d_output, d_lse, query, key, value, rpb = ctx.saved_tensors
        gradients = fused_backward.second_gradients(
            d_output, d_lse, query, key, value, rpb, directions, ctx.options
        )
        of_tensors = (grad if flag else None for grad, flag in zip(gradients, needed))
        # None for run, before the tensors; for output, lse, wanted and options, after them.
        return (None, *of_tensors, None, None, None, None)


run_forward = differentiable(
    forward,
    fused_forward.forward,
    4,
    with_gradient=first_of(
        forward_lse, _AttentionFunction, fused_forward.forward, fused_forward.forward_lse
    ),
    with_tangent=lambda run, *arguments: fused_forward.composed(*arguments)[0],
)
run_forward_lse = differentiable(
    forward_lse,
    fused_forward.forward_lse,
    4,
    with_gradient=functools.partial(apply, _AttentionFunction),
    with_tangent=lambda run, *arguments: fused_forward.composed(*arguments),
)
run_backward = differentiable(
    backward,
    fused_backward.backward,
    8,
    with_gradient=functools.partial(apply, _Backward),
    with_tangent=lambda run, *arguments: fused_backward.composed(*arguments),
)
