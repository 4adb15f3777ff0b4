"""The operators `qk`, `av`, `inverse_av` and `sum_rpb`: schemas, shapes, derivatives.

Each is linear in each of its tensors, and its derivatives are again these operators. So
derivatives in either mode, of any order, run on kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from natc.dispatch import qk_av
from natc.dispatch.fallback import reference_is_forced
from natc.ops.direct import are_transforms_active
from natc.ops.library import (
    WINDOW,
    Function,
    apply,
    as_in_the_forward,
    define,
    differentiable,
    dispatched,
    library,
)
from natc.reference.backward import of_group
from natc.reference.layout import accumulator

_define = functools.partial(define, results="Tensor", options=WINDOW)

qk = _define("qk", "Tensor query, Tensor key, Tensor? rpb, float fill", implementation=qk_av.qk)
av = _define("av", "Tensor attn, Tensor value", implementation=qk_av.av)
inverse_av = _define("inverse_av", "Tensor attn, Tensor vector", implementation=qk_av.inverse_av)
sum_rpb = _define("sum_rpb", "Tensor d_attn, int head_dim", implementation=qk_av.sum_rpb)


@torch.library.register_fake(qk, lib=library)
def _(
    query: Tensor, key: Tensor, rpb: Any, fill: float, kernel_size: Sequence[int], *_: Any
) -> Tensor:
    return query.new_empty((*query.shape[:-1], math.prod(kernel_size)))


@torch.library.register_fake(av, lib=library)
@torch.library.register_fake(inverse_av, lib=library)
def _(attn: Tensor, vectors: Tensor, *_: Any) -> Tensor:
    return attn.new_empty((*attn.shape[:-1], vectors.shape[-1]))


@torch.library.register_fake(sum_rpb, lib=library)
def _(d_attn: Tensor, head_dim: int, kernel_size: Sequence[int], *_: Any) -> Tensor:
    shape = (d_attn.shape[1], *(2 * size - 1 for size in kernel_size))
    return d_attn.new_empty(shape, dtype=accumulator(d_attn.dtype))


class _Linear(Function):
    """An operator that is linear in each tensor; subclasses define its gradients.

    tensors: how many of the operator's first arguments are tensors. ctx.constants holds the
    others: fill or head_dim, if the operator has it, and the options. call: the function by which
    natc calls the operator.
    """

    tensors: int
    call: Callable[..., Tensor]

    @classmethod
    def forward(cls, ctx: Any, run: Callable[..., Any], *arguments: Any) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[: cls.tensors])
        ctx.save_for_forward(*arguments[: cls.tensors])
        ctx.constants, ctx.gradients = arguments[cls.tensors :], cls.gradients
        ctx.forced = reference_is_forced()
        return run(*arguments)

    # A static method: compiled autograd takes no class method here.
    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[1 : -len(ctx.constants)]
        gradients: Sequence[Tensor | None] = (None,) * len(needed)
        if grad is not None:
            with as_in_the_forward(ctx):
                gradients = ctx.gradients(grad, needed, ctx.saved_tensors, *ctx.constants)
        return (None, *gradients, *(None for _ in ctx.constants))

    @classmethod
    def jvp(cls, ctx: Any, _: None, *tangents: Any) -> Tensor:
        return cls.tangent(tangents[: cls.tensors], ctx.saved_tensors, *ctx.constants)

    @staticmethod
    def gradients(
        grad: Tensor, needed: Sequence[bool], saved: Sequence[Any], *constants: Any
    ) -> Sequence[Tensor | None]:
        """Return the gradients of the saved tensors, None for each that is not needed."""
        raise NotImplementedError

    @classmethod
    def tangent(cls, tangents: Sequence[Any], saved: Sequence[Any], *constants: Any) -> Tensor:
        """Return the result's tangent by the product rule; not all tangents are None."""
        terms = [
            cls.call(*saved[:index], tangent, *saved[index + 1 :], *constants)
            for index, tangent in enumerate(tangents)
            if tangent is not None
        ]
        return _sum(terms)


class _QK(_Linear):
    tensors = 3

    @staticmethod
    def gradients(
        grad: Tensor, needed: Sequence[bool], saved: Sequence[Any], *constants: Any
    ) -> Sequence[Tensor | None]:
        query, key, _ = saved
        *_, options = constants
        return (
            run_av(grad, key, options) if needed[0] else None,
            _of_group(run_inverse_av(grad, query, options), key) if needed[1] else None,
            run_sum_rpb(grad, query.shape[-1], options) if needed[2] else None,
        )

    @classmethod
    def tangent(cls, tangents: Sequence[Any], saved: Sequence[Any], *constants: Any) -> Tensor:
        (t_query, t_key, t_rpb), (query, key, _) = tangents, saved
        *_, options = constants
        terms = []
        if t_query is not None:
            terms.append(run_qk(t_query, key, t_rpb, 0.0, options))
        elif t_rpb is not None:
            zeros = torch.zeros_like(query), torch.zeros_like(key)
            terms.append(run_qk(*zeros, t_rpb, 0.0, options))
        if t_key is not None:
            terms.append(run_qk(query, t_key, None, 0.0, options))
        return _sum(terms)


class _AV(_Linear):
    tensors = 2

    @staticmethod
    def gradients(
        grad: Tensor, needed: Sequence[bool], saved: Sequence[Any], *constants: Any
    ) -> Sequence[Tensor | None]:
        (attn, value), (options,) = saved, constants
        return (
            run_qk(grad, value, None, 0.0, options) if needed[0] else None,
            _of_group(run_inverse_av(attn, grad, options), value) if needed[1] else None,
        )


class _InverseAV(_Linear):
    tensors = 2

    @staticmethod
    def gradients(
        grad: Tensor, needed: Sequence[bool], saved: Sequence[Any], *constants: Any
    ) -> Sequence[Tensor | None]:
        (attn, vector), (options,) = saved, constants
        return (
            run_qk(vector, grad, None, 0.0, options) if needed[0] else None,
            run_av(attn, grad, options) if needed[1] else None,
        )


class _SumRpb(_Linear):
    tensors = 1

    @staticmethod
    def gradients(
        grad: Tensor, needed: Sequence[bool], saved: Sequence[Any], *constants: Any
    ) -> Sequence[Tensor | None]:
        (d_attn,), (head_dim, options) = saved, constants
        # `qk` of zeros is the bias alone: each tap gets the entry that it was summed into.
        zeros = d_attn.new_zeros((*d_attn.shape[:-1], head_dim))
        return (run_qk(zeros, zeros, grad, 0.0, options) if needed[0] else None,)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _of_group(of_heads: Tensor, like: Tensor) -> Tensor:
    """Sum `[B, heads, *S, n]` over the heads that share a head of `like`, in its dtype."""
    if of_heads.shape[1] == like.shape[1]:
        return of_heads
    return of_group(of_heads.movedim(1, -2), like.shape[1]).movedim(-2, 1).to(like.dtype)


def _with_tangent(
    operator: Callable[..., Tensor], function: type[_Linear], run: Any, *arguments: Any
) -> Tensor:
    """Run the operator and return its result, with a tangent for forward-mode derivatives."""
    if not are_transforms_active():
        return apply(function, run, *arguments)
    # The `jvp` of an autograd function would switch off transforms further out.
    variables, constants = arguments[: function.tensors], arguments[function.tensors :]
    pairs = [(None, None) if t is None else forward_ad.unpack_dual(t) for t in variables]
    primals = [primal for primal, _ in pairs]
    tangent = function.tangent([tangent for _, tangent in pairs], primals, *constants)
    return forward_ad.make_dual(operator(*primals, *constants), tangent)


def _linear(
    operator: Callable[..., Tensor],
    implementation: Callable[..., Tensor],
    function: type[_Linear],
) -> Callable[..., Tensor]:
    """Register an operator's derivatives; return the function by which natc calls it."""
    function.call = differentiable(
        operator,
        implementation,
        function.tensors,
        with_gradient=functools.partial(apply, function),
        with_tangent=functools.partial(_with_tangent, dispatched(operator), function),
    )
    return function.call


run_qk = _linear(qk, qk_av.qk, _QK)
run_av = _linear(av, qk_av.av, _AV)
run_inverse_av = _linear(inverse_av, qk_av.inverse_av, _InverseAV)
run_sum_rpb = _linear(sum_rpb, qk_av.sum_rpb, _SumRpb)
