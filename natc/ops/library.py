"""The library `natc` of operators, and how one comes by its gradient.

The Autograd kernels are natc's own: `torch.library.register_autograd` costs 8 microseconds in each
call that needs no gradient, more than the rest of the way to a kernel, because it always
dispatches twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from natc.dispatch.fallback import force_reference, reference_is_forced
from natc.ops.direct import goes_straight

OPTIONS = "int[] kernel_size, SymInt[] dilation, int[] stride, bool[] is_causal"
_TAGS = tuple(
    getattr(torch.Tag, name)
    for name in ("pt2_compliant_tag", "needs_contiguous_strides")
    if hasattr(torch.Tag, name)
)

# `natc`; where another package carries natc, that package's name, so that two do not clash.
NAMESPACE = __name__.removesuffix(".ops.library").replace(".", "_")
operators = getattr(torch.ops, NAMESPACE)

# The library object owns the registrations: they go when it does.
library = torch.library.Library(NAMESPACE, "DEF")


def define(name: str, parameters: str, results: str, implementation: Callable[..., Any]) -> Any:
    """Define an operator and return it, bound: looking it up by name costs as much as a kernel."""
    library.define(f"{name}({parameters}) -> {results}", tags=_TAGS)
    # One implementation for every device: which kernel runs is decided inside.
    library.impl(name, implementation, "CompositeExplicitAutograd")
    return getattr(operators, name).default


class Function(torch.autograd.function._SingleLevelFunction):
    """The class below torch.autograd.Function: it may be used in an operator under torch.func."""

    # As torch.autograd.Function says it to compiled autograd.
    _compiled_autograd_key = staticmethod(torch.autograd.Function._compiled_autograd_key)


# The dispatcher's keys of a call that nothing but autograd has a part in: no tracing, no
# transform, no tensor subclass, no lazy negation.
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_PLAIN = frozenset(
    torch._C.DispatchKeySet(key).raw_repr()
    for key in (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
)


def differentiable(
    operator: Any,
    implementation: Callable[..., Any],
    tensors: int,
    *,
    with_gradient: Callable[..., Any],
    with_tangent: Callable[..., Any],
) -> Callable[..., Any]:
    """Give an operator its derivatives; return the function by which natc calls it.

    tensors: how many of its first arguments are tensors. with_gradient: called as
    `with_gradient(run, *arguments)` where one requires a gradient; `run` is the operator without
    one. with_tangent: the same where one carries a tangent of forward-mode differentiation.
    """

    def without_autograd(*arguments: Any) -> Any:
        if not torch._C._are_functorch_transforms_active():
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments)
        # Transforms further out may differentiate too, which an autograd function switches off.
        with (
            torch.enable_grad(),
            forward_ad._set_fwd_grad_enabled(True),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            return operator(*arguments)

    def derived(run: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        derivative = None
        if forward_ad._current_level >= 0 and any(map(_has_tangent, arguments[:tensors])):
            derivative = with_tangent
        elif torch.is_grad_enabled():
            for tensor in arguments[:tensors]:
                if tensor is not None and tensor.requires_grad:
                    derivative = with_gradient
                    break
        # Asked last: a call without derivatives has no need to.
        if derivative is None or _autograd_is_passed_by():
            return run(*arguments)
        return derivative(run, *arguments)

    def autograd(keys: Any, *arguments: Any) -> Any:
        plain = (keys & _BELOW_AUTOGRAD).raw_repr() in _PLAIN
        return derived(implementation if plain else without_autograd, arguments)

    def call(*arguments: Any) -> Any:
        if goes_straight(arguments[:tensors]):
            return derived(implementation, arguments)
        return operator(*arguments)

    library.impl(operator._schema.name, autograd, "Autograd", with_keyset=True)
    return call


def apply(function: type[Function], *arguments: Any) -> Any:
    """Call an autograd function, under the transforms of torch.func too."""
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)  # type: ignore[attr-defined]
    with torch._functorch.utils.enable_single_level_autograd_function():
        return function.apply(*arguments)  # type: ignore[attr-defined]


def first_of(
    with_lse: Any,
    function: type[Function],
    implementation: Callable[..., Any],
    implementation_with_lse: Callable[..., Any],
) -> Callable[..., Tensor]:
    """Return `with_gradient` of a forward that returns no logsumexp, which its gradient needs.

    with_lse: the operator that does, whose autograd function `function` is.
    """

    def with_gradient(run: Callable[..., Any], *arguments: Any) -> Tensor:
        if run is implementation:  # what the operator would come to, dispatched once
            return apply(function, implementation_with_lse, *arguments)[0]
        return with_lse(*arguments)[0]

    return with_gradient


def run_and_keep(ctx: Any, run: Callable[..., Any], tensors: int, arguments: Sequence[Any]) -> Any:
    """Return (output, lse) of a fused forward; keep these, its tensors and its options in ctx."""
    ctx.set_materialize_grads(False)
    output, lse = run(*arguments)
    ctx.save_for_backward(*arguments[:tensors], output, lse)
    ctx.options = arguments[tensors:]
    ctx.forced = reference_is_forced()
    return output, lse


def as_in_the_forward(ctx: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context for the derivatives of a call, which kept `ctx.forced`.

    What ran on the reference by request goes back through it without a warning.
    """
    return force_reference() if ctx.forced else contextlib.nullcontext()


def _autograd_is_passed_by() -> bool:
    """Return whether the dispatcher would call no Autograd kernel, whatever tensors require.

    It would not in inference mode, where gradients may be enabled, nor inside another operator or
    a dispatch mode, whose gradients are the caller's.
    """
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradOther)


def _has_tangent(tensor: Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None
