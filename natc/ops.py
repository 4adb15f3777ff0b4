"""The operators `torch.ops.natc.*`: schemas, shapes for tracing, gradients, vmap, FLOP counts.

`na2d_forward` and `na2d_forward_lse` differ in how many tensors they return, because the number
of results of an operator is fixed. They check nothing; call `natc.na2d`, which does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from natc import gradients, launch
from natc.errors import ArgumentError
from natc.fallback import NatcFallbackWarning, force_reference, reference_is_forced
from natc.fallback import Options as _Options

__all__ = ["NatcFallbackWarning", "force_reference", "na2d_forward", "na2d_forward_lse"]

_TENSORS = "Tensor query, Tensor key, Tensor value, Tensor? rpb"
_OPTIONS = "int[] kernel_size, SymInt[] dilation, int[] stride, bool[] is_causal, float scale"
_TAGS = tuple(
    getattr(torch.Tag, name)
    for name in ("pt2_compliant_tag", "needs_contiguous_strides")
    if hasattr(torch.Tag, name)
)

# The library object owns the registrations: they go when it does.
_library = torch.library.Library("natc", "DEF")
_library.define(f"na2d_forward({_TENSORS}, {_OPTIONS}) -> Tensor", tags=_TAGS)
_library.define(f"na2d_forward_lse({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)", tags=_TAGS)
_library.define(
    f"na2d_backward(Tensor[] grads, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)

# Bound once: looking an operator up by name costs as much as a small kernel.
na2d_forward = torch.ops.natc.na2d_forward.default
na2d_forward_lse = torch.ops.natc.na2d_forward_lse.default
_na2d_backward = torch.ops.natc.na2d_backward.default


def _backward(
    grads: Sequence[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    found = gradients.backward(tuple(grads), query, key, value, rpb, _Options(*options))
    # The number of results is fixed: an empty tensor stands for the gradient of no rpb.
    return tuple(query.new_empty(0) if t is None else t.contiguous() for t in found)


# One implementation for every device: which kernel runs is decided inside.
_library.impl("na2d_forward", launch.forward, "CompositeExplicitAutograd")
_library.impl("na2d_forward_lse", launch.forward_lse, "CompositeExplicitAutograd")
_library.impl("na2d_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake(na2d_forward, lib=_library)
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.register_fake(na2d_forward_lse, lib=_library)
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    return output, launch.empty_lse(query)


@torch.library.register_fake(_na2d_backward, lib=_library)
def _(
    grads: Sequence[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    return tuple(
        query.new_empty(0)
        if t is None
        else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (query, key, value, rpb)
    )


# The class below torch.autograd.Function, which may be used inside an operator under torch.func.
class _Attention(torch.autograd.function._SingleLevelFunction):
    """One of the forward operators, with what its backward needs."""

    @staticmethod
    def forward(ctx: Any, operator: Callable[..., Any], *arguments: Any) -> Any:
        ctx.save_for_backward(*arguments[:4])
        ctx.options = arguments[4:]
        ctx.forced = reference_is_forced()
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        query, key, value, rpb = ctx.saved_tensors
        # What ran on the reference by request goes back through it without a warning.
        with force_reference() if ctx.forced else contextlib.nullcontext():
            if torch.is_grad_enabled():
                found = gradients.differentiable_backward(
                    grads, query, key, value, rpb, _Options(*ctx.options)
                )
            else:
                found = _na2d_backward(list(grads), query, key, value, rpb, *ctx.options)
        of_rpb = None if rpb is None else found[3]
        return (None, *found[:3], of_rpb, *(None for _ in ctx.options))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise ArgumentError(
            "query, key, value or rpb carries a tangent; natc's operators have no forward-mode "
            "derivative, natc.reference.neighborhood_attention has."
        )


# The dispatcher's keys of a call that nothing but autograd has a part in: no tracing, no
# transform, no tensor subclass, no lazy negation.
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_PLAIN = frozenset(
    torch._C.DispatchKeySet(key).raw_repr()
    for key in (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
)


def _register_autograd(
    name: str, operator: Callable[..., Any], implementation: Callable[..., Any]
) -> None:
    """Give an operator its gradient.

    torch.library.register_autograd would do; it costs 8 microseconds in each call that needs no
    gradient, more than the rest of the way to the kernel, because it always dispatches twice.
    """

    def autograd(keys: Any, *arguments: Any) -> Any:
        needs_gradient = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in arguments[:4]
        )
        plain = (keys & _BELOW_AUTOGRAD).raw_repr() in _PLAIN and forward_ad._current_level < 0
        if plain and not needs_gradient:
            return implementation(*arguments)
        if not torch._C._are_functorch_transforms_active():
            return _Attention.apply(operator, *arguments)  # type: ignore[attr-defined]
        with torch._functorch.utils.enable_single_level_autograd_function():
            return _Attention.apply(operator, *arguments)  # type: ignore[attr-defined]

    _library.impl(name, autograd, "Autograd", with_keyset=True)


_register_autograd("na2d_forward", na2d_forward, launch.forward)
_register_autograd("na2d_forward_lse", na2d_forward_lse, launch.forward_lse)


def _vmap_rule(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return a batching rule: the mapped axis becomes part of the batch."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        tensors = [
            _mapped_first(t, dim, size) for t, dim in zip(arguments[:3], in_dims[:3], strict=True)
        ]
        rpb, options = arguments[3], arguments[4:]
        if in_dims[3] is None:
            results = _as_tuple(operator(*(t.flatten(0, 1) for t in tensors), rpb, *options))
            mapped = [result.unflatten(0, (size, -1)) for result in results]
        else:
            # One bias for each slice: they cannot share a call.
            slices = zip(*(t.unbind() for t in tensors), rpb.unbind(in_dims[3]), strict=True)
            each = [_as_tuple(operator(*one, *options)) for one in slices]
            mapped = [torch.stack(results) for results in zip(*each, strict=True)]
        if len(mapped) == 1:
            return mapped[0], 0
        return tuple(mapped), (0,) * len(mapped)

    return rule


def _mapped_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


for _operator in (na2d_forward, na2d_forward_lse):
    torch.library.register_vmap(_operator, _vmap_rule(_operator), lib=_library)


def _flops(products: int, query: Sequence[int], kernel_size: Sequence[int]) -> int:
    """Count some products of head_dim multiply-adds for each query and tap of a full window."""
    return 2 * products * math.prod(query) * math.prod(kernel_size)


@register_flop_formula([torch.ops.natc.na2d_forward, torch.ops.natc.na2d_forward_lse])
def _(query: Any, key: Any, value: Any, rpb: Any, kernel_size: Any, *_: Any, **__: Any) -> int:
    return _flops(2, query, kernel_size)


@register_flop_formula(torch.ops.natc.na2d_backward)
def _(
    grads: Any, query: Any, key: Any, value: Any, rpb: Any, kernel_size: Any, *_: Any, **__: Any
) -> int:
    # The recomputed query key^T, and one product for each of grad_weights, query, key, value.
    return _flops(5, query, kernel_size)
