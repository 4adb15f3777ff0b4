"""The operators behind every release: each is one call of natc under the name NATTEN gave it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from natc import functional
from natc.compat.natten.arguments import (
    check_bias,
    check_window,
    options_017,
    refuse_nested,
)

_QK = {1: functional.na1d_qk, 2: functional.na2d_qk, 3: functional.na3d_qk}
_AV = {1: functional.na1d_av, 2: functional.na2d_av, 3: functional.na3d_av}


def qk(
    rank: int,
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    additional_keys: Tensor | None,
    kernel_size: Any,
    dilation: Any,
    is_causal: Any = False,
) -> Tensor:
    """Check the options and return `natc.functional.na2d_qk`, or its like of rank 1 or 3."""
    refuse_nested(query, key)
    kernel_size, dilation, is_causal = options_017(rank, kernel_size, dilation, is_causal)
    check_bias(is_causal, rpb)
    check_window(kernel_size, dilation, query.shape[2:-1])
    return _QK[rank](
        query,
        key,
        kernel_size,
        dilation=dilation,
        is_causal=is_causal,
        rpb=rpb,
        additional_keys=additional_keys,
    )


def av(
    rank: int,
    attn: Tensor,
    value: Tensor,
    additional_values: Tensor | None,
    kernel_size: Any,
    dilation: Any,
    is_causal: Any = False,
) -> Tensor:
    """Check the options and return `natc.functional.na2d_av`, or its like of rank 1 or 3."""
    refuse_nested(attn, value)
    kernel_size, dilation, is_causal = options_017(rank, kernel_size, dilation, is_causal)
    check_window(kernel_size, dilation, value.shape[2:-1])
    return _AV[rank](
        attn,
        value,
        kernel_size,
        dilation=dilation,
        is_causal=is_causal,
        additional_values=additional_values,
    )


def is_tracing() -> bool:
    """Return whether `torch.jit.trace` is running; fvcore's counters use it."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


class Operator:
    """Replaces an autograd function of a release: a class with the method `apply`.

    It does not derive from `torch.autograd.Function`: natc's operators already have derivatives
    of any order in both modes, and torch.compile can trace a plain call.
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

    `torch.jit.trace` records it as one node, `prim::PythonOp.name`, because fvcore's counters and
    the handles that programs register with them search for that name.
    """
    traced = type(name, (_Traced,), {"call": staticmethod(call)})
    body = {"_call": staticmethod(call), "_traced": traced, "__doc__": Operator.__doc__}
    return type(name, (Operator,), body)


class _Traced(torch.autograd.Function):
    """Records a call as one node of a trace; backward differentiates natc's operators inside."""

    call: ClassVar[Callable[..., Any]]

    @classmethod
    def forward(cls, ctx: Any, *arguments: Any) -> Any:
        is_tensor = [isinstance(argument, Tensor) for argument in arguments]
        ctx.save_for_backward(*(a for a, tensor in zip(arguments, is_tensor) if tensor))
        ctx.constants = [None if tensor else a for a, tensor in zip(arguments, is_tensor)]
        ctx.is_tensor = is_tensor
        with _not_tracing():
            results = cls.call(*arguments)
        # torch.jit.trace rejects tensors created while tracing was off, but accepts copies.
        if isinstance(results, tuple):
            return tuple(result.clone() for result in results)
        return results.clone()

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        saved = [tensor.detach().requires_grad_(True) for tensor in ctx.saved_tensors]
        tensors = iter(saved)
        arguments = [
            next(tensors) if tensor else constant
            for constant, tensor in zip(ctx.constants, ctx.is_tensor)
        ]
        with torch.enable_grad():
            results = cls.call(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        d_saved = iter(torch.autograd.grad(results, saved, grads, allow_unused=True))
        return tuple(next(d_saved) if tensor else None for tensor in ctx.is_tensor)


@contextlib.contextmanager
def _not_tracing() -> Iterator[None]:
    """Suspend tracing, since a trace cannot hold natc's operators."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Rename `function` and return it."""
    function.__name__ = function.__qualname__ = name
    return function


def by_name(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return functions by their names."""
    return {function.__name__: function for function in functions}


def variant(
    function: Callable[..., Any],
    fixed: Mapping[str, Any] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Callable[..., Any]:
    """Return `function` with other parameters, such as an earlier release has.

    fixed: parameters to remove, and the values that they get. renamed: new names of parameters.
    """
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(name=renamed.get(name, name))
        for name, parameter in signature.parameters.items()
        if name not in fixed
    ]
    names = [parameter.name for parameter in parameters]
    originals = {**dict(zip(names, names)), **{new: old for old, new in renamed.items()}}
    name = function.__name__

    @functools.wraps(function)
    def call(*values: Any, **by: Any) -> Any:
        if len(values) > len(names):
            raise TypeError(f"{name}() takes at most {len(names)} positional arguments")
        arguments = dict(fixed)
        for key, value in (*zip(names, values), *by.items()):
            if key not in originals:
                raise TypeError(f"{name}() got an unexpected keyword argument '{key}'")
            if originals[key] in arguments:
                raise TypeError(f"{name}() got multiple values for argument '{key}'")
            arguments[originals[key]] = value
        return function(**arguments)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call
