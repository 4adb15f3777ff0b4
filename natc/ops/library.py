"""The library `natc` of operators: how they are defined, called and differentiated.

The Autograd kernels are natc's own: `torch.library.register_autograd` costs 8 microseconds in each
call that needs no gradient, more than the rest of the way to a kernel, because it always
dispatches twice.

An operator takes the options of a call one by one, which is what `torch.library` can describe.
natc's own functions, implementations and derivatives take them as one `Options`, always as their
last argument; the two forms meet only here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from natc.dispatch.call import Options
from natc.dispatch.fallback import force_reference, reference_is_forced
from natc.ops.direct import are_transforms_active, goes_straight
from natc.spec import TERMS

# The fields of `Options`, in order; the unfused operators take none but the window's.
WINDOW = "int[] kernel_size, int[] stride, SymInt[] dilation, bool[] is_causal"
OPTIONS = ", ".join([WINDOW, "float scale", *(f"float {term}=0.0" for term in TERMS)])
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


def define(
    name: str,
    inputs: str,
    results: str,
    implementation: Callable[..., Any],
    *,
    options: str = OPTIONS,
) -> Any:
    """Define the operator `name(inputs, options) -> results` and return it as an OpOverload.

    The overload, not its name: looking an operator up by name costs as much as a kernel.
    """
    library.define(f"{name}({inputs}, {options}) -> {results}", tags=_TAGS)
    operator = getattr(operators, name).default
    before = _before_options(operator)

    def run(*flat: Any) -> Any:
        return implementation(*flat[:before], _options(flat, before))

    # The same for every device: `implementation` chooses the kernel.
    library.impl(name, run, "CompositeExplicitAutograd")
    return operator


def _before_options(operator: Any) -> int:
    """Return how many arguments an operator takes before its options."""
    return [argument.name for argument in operator._schema.arguments].index("kernel_size")


# The defaults of the numbers that follow the window's options, from each of them on.
_DEFAULTS = [(*Options._field_defaults.values(),)[n:] for n in range(len(TERMS) + 2)]


def _options(flat: Sequence[Any], before: int) -> Options:
    """Return the options among the arguments of an operator, from index `before` on."""
    # The dispatcher leaves out last arguments that have their defaults.
    numbers = flat[before + 4 :]
    # As Options(...), in less time: each call through the dispatcher comes through here.
    return tuple.__new__(
        Options,
        (
            tuple(flat[before]),
            tuple(flat[before + 1]),
            tuple(flat[before + 2]),
            tuple(flat[before + 3]),
            *numbers,
            *_DEFAULTS[len(numbers)],
        ),
    )


def dispatched(operator: Any) -> Callable[..., Any]:
    """Return a function that calls an operator; its last argument is an `Options`."""
    number = len(operator._schema.arguments) - _before_options(operator)

    def call(*arguments: Any) -> Any:
        return operator(*arguments[:-1], *arguments[-1][:number])

    return call


class Function(torch.autograd.function._SingleLevelFunction):
    """The base of natc's autograd functions, which torch.func lets run inside an operator.

    torch.autograd.Function, a subclass of the same base, is not allowed there.
    """

    # As torch.autograd.Function declares it to compiled autograd.
    _compiled_autograd_key = staticmethod(torch.autograd.Function._compiled_autograd_key)


# The dispatcher's keys of a call in which nothing but autograd has a part: no tracing, no
# transform, no tensor subclass, no lazy negation.
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset.raw_repr()
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
    """Register an operator's derivatives; return the function by which natc calls it.

    That function takes the operator's arguments, with the options as one value.

    Args:
        tensors: how many of the operator's first arguments are tensors.
        with_gradient: called as `with_gradient(run, *arguments)` if a tensor requires a gradient;
            `run` is the operator without derivatives.
        with_tangent: the same if a tensor has a tangent of forward-mode differentiation.
    """
    call_operator = dispatched(operator)
    before = _before_options(operator)

    def without_autograd(*arguments: Any) -> Any:
        if not are_transforms_active():
            with torch._C._AutoDispatchBelowAutograd():
                return call_operator(*arguments)
        # Transforms further out may differentiate too, which an autograd function switches off.
        with (
            torch.enable_grad(),
            forward_ad._set_fwd_grad_enabled(True),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            return call_operator(*arguments)

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

    def autograd(keys: Any, *flat: Any) -> Any:
        plain = keys.raw_repr() & _BELOW_AUTOGRAD in _PLAIN
        arguments = (*flat[:before], _options(flat, before))
        return derived(implementation if plain else without_autograd, arguments)

    def call(*arguments: Any) -> Any:
        if goes_straight(arguments[:tensors]):
            return derived(implementation, arguments)
        return call_operator(*arguments)

    library.impl(operator._schema.name, autograd, "Autograd", with_keyset=True)
    return call


def apply(function: type[Function], *arguments: Any) -> Any:
    """Call an autograd function, under the transforms of torch.func too."""
    if not are_transforms_active():
        return function.apply(*arguments)  # type: ignore[attr-defined]
    with torch._functorch.utils.enable_single_level_autograd_function():
        return function.apply(*arguments)  # type: ignore[attr-defined]


def first_of(
    operator_with_lse: Any,
    function: type[Function],
    implementation: Callable[..., Any],
    implementation_with_lse: Callable[..., Any],
) -> Callable[..., Tensor]:
    """Return `with_gradient` for a forward that returns no logsumexp, which its gradient needs.

    function: the autograd function of `operator_with_lse`.
    """
    call_with_lse = dispatched(operator_with_lse)

    def with_gradient(run: Callable[..., Any], *arguments: Any) -> Tensor:
        if run is implementation:  # call_with_lse would come to the same, dispatched once more
            return apply(function, implementation_with_lse, *arguments)[0]
        return call_with_lse(*arguments)[0]

    return with_gradient


def run_and_keep(ctx: Any, run: Callable[..., Any], tensors: int, arguments: Sequence[Any]) -> Any:
    """Return (output, lse) of a fused forward; keep these, its tensors and its options in ctx."""
    ctx.set_materialize_grads(False)
    output, lse = run(*arguments)
    ctx.save_for_backward(*arguments[:tensors], output, lse)
    ctx.options = arguments[-1]
    ctx.forced = reference_is_forced()
    return output, lse


def as_in_the_forward(ctx: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context that forces the reference if the forward was forced (`ctx.forced`).

    So a call that the user forced onto the reference is differentiated there without a warning.
    """
    return force_reference() if ctx.forced else contextlib.nullcontext()


def _autograd_is_passed_by() -> bool:
    """Return whether the dispatcher skips Autograd kernels, whatever tensors require.

    It does in inference mode, even if gradients are enabled there, and inside another operator or
    a dispatch mode, whose caller differentiates.
    """
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradOther)


def _has_tangent(tensor: Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None
