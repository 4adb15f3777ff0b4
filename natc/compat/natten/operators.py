"""The computations behind every release: one call of natc each, under the names of a release."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from natc import functional
from natc.compat.natten.arguments import check_window, refuse_nested

_QK = {1: functional.na1d_qk, 2: functional.na2d_qk, 3: functional.na3d_qk}
_AV = {1: functional.na1d_av, 2: functional.na2d_av, 3: functional.na3d_av}


def qk(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    additional_keys: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool] | bool = False,
) -> Tensor:
    """Return query key^T + rpb, heads-first: `natc.functional.na2d_qk`, window checked."""
    refuse_nested(query, key)
    check_window(kernel_size, dilation, query.shape[2:-1])
    return _QK[len(kernel_size)](
        query,
        key,
        kernel_size,
        dilation=dilation,
        is_causal=is_causal,
        rpb=rpb,
        additional_keys=additional_keys,
    )


def av(
    attn: Tensor,
    value: Tensor,
    additional_values: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool] | bool = False,
) -> Tensor:
    """Return the values weighted by attn, heads-first: `natc.functional.na2d_av`."""
    refuse_nested(attn, value)
    check_window(kernel_size, dilation, value.shape[2:-1])
    return _AV[len(kernel_size)](
        attn,
        value,
        kernel_size,
        dilation=dilation,
        is_causal=is_causal,
        additional_values=additional_values,
    )


def is_tracing() -> bool:
    """Return whether `torch.jit.trace` is at work, as it is for fvcore's counters."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


class Operator:
    """What stands for an autograd function of a release: a class that has `apply`.

    It is no subclass of `torch.autograd.Function`, since the operators that natc calls have
    derivatives of their own, of any order and in both modes, and torch.compile follows the call.
    """

    _call: ClassVar[Callable[..., Any]]
    _traced: ClassVar[type[torch.autograd.Function]]

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """Run the operator on its arguments, all positional."""
        if is_tracing():
            return cls._traced.apply(*arguments)
        return cls._call(*arguments)


def operator(name: str, call: Callable[..., Any]) -> type[Operator]:
    """Return a class `name` whose `apply` is `call`.

    Under `torch.jit.trace` it is one node, `prim::PythonOp.name`: what fvcore's counters, and the
    handles that programs registered for them, look for.
    """
    traced = type(name, (_Traced,), {"call": staticmethod(call)})
    body = {"_call": staticmethod(call), "_traced": traced, "__doc__": Operator.__doc__}
    return type(name, (Operator,), body)


class _Traced(torch.autograd.Function):
    """A call as one node of a trace; its gradient is that of the operators inside."""

    call: ClassVar[Callable[..., Any]]

    @classmethod
    def forward(cls, ctx: Any, *arguments: Any) -> Any:
        is_tensor = [isinstance(argument, Tensor) for argument in arguments]
        ctx.save_for_backward(*(a for a, tensor in zip(arguments, is_tensor) if tensor))
        ctx.others = [None if tensor else a for a, tensor in zip(arguments, is_tensor)]
        ctx.is_tensor = is_tensor
        with _not_tracing():
            results = cls.call(*arguments)
        # A trace knows no tensor that was made outside of it, and takes only copies in.
        if isinstance(results, tuple):
            return tuple(result.clone() for result in results)
        return results.clone()

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        saved = [tensor.detach().requires_grad_(True) for tensor in ctx.saved_tensors]
        left = iter(saved)
        arguments = [
            next(left) if tensor else other for other, tensor in zip(ctx.others, ctx.is_tensor)
        ]
        with torch.enable_grad():
            results = cls.call(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        found = iter(torch.autograd.grad(results, saved, grads, allow_unused=True))
        return tuple(next(found) if tensor else None for tensor in ctx.is_tensor)


@contextlib.contextmanager
def _not_tracing() -> Iterator[None]:
    """Leave what runs inside out of a trace, which could not hold natc's operators."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function under the name that it has in a release."""
    function.__name__ = function.__qualname__ = name
    return function
