"""Calls that reach an operator's kernel without torch's dispatcher, which would add nothing.

Dispatching to a kernel that is written in Python takes 8 microseconds, more than everything else
that natc does in a call. A call with plain tensors needs no dispatch if no mode, transform, trace
or profiler has to see it: natc differentiates it itself. One observer cannot be noticed, torch's
ExecutionTraceObserver without a profiler: it sees the allocations of a call, but not the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.compiler import is_dynamo_compiling

_KINDS = frozenset((Tensor, nn.Parameter))


def _keys(*names: str) -> int:
    """Return the set of the dispatcher's keys with these names, as a number."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, names[0]))
    for name in names[1:]:
        keys = keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return keys.raw_repr()


def _never(tensors: Sequence[Tensor | None]) -> bool:
    """Return False: every call takes the dispatcher."""
    return False


def _shortcut() -> Callable[[Sequence[Tensor | None]], bool]:
    """Return `goes_straight`; `_never` if this torch lacks a name that it needs.

    They are private names of torch's. Each is looked up once, here: looking one up on torch takes
    as long as calling some of them.
    """
    try:
        are_transforms_active = torch._C._are_functorch_transforms_active
        dispatch_keys = torch._C._dispatch_keys
        tracing_state = torch._C._get_tracing_state
        dispatch_modes = torch._C._len_torch_dispatch_stack
        function_modes = torch._C._len_torch_function_stack
        is_thread_profiled = torch._C._autograd._profiler_enabled
        # The dispatcher's keys of a tensor without wrapper, lazy negation or unusual layout, as
        # torch creates it and in inference mode. Autocast's key is there even if it is off.
        plain_keys = frozenset(
            _keys(device, f"Autocast{device}", *autograd)
            for device in ("CPU", "CUDA")
            for autograd in ((), ("ADInplaceOrView", f"Autograd{device}"))
        )
        profiler._is_profiler_enabled  # noqa: B018 -- raises if it is not there
    except AttributeError:
        return _never

    def goes_straight(tensors: Sequence[Tensor | None]) -> bool:
        if (
            # First, since what follows cannot be traced.
            is_dynamo_compiling()
            or dispatch_modes()
            or function_modes()
            or are_transforms_active()
            or tracing_state() is not None
            # A profiler started from Python, in any thread, since it may see this thread too; then
            # a profiler started from C++.
            or profiler._is_profiler_enabled
            or is_thread_profiled()
        ):
            return False
        for tensor in tensors:
            if tensor is not None and (
                type(tensor) not in _KINDS or dispatch_keys(tensor).raw_repr() not in plain_keys
            ):
                return False
        return True

    return goes_straight


# goes_straight(tensors): whether nothing but natc has a part in a call with these tensors.
goes_straight = _shortcut()


def _always() -> bool:
    return True


# Whether a transform of torch.func is active. If torch cannot say, True: right, but slower.
are_transforms_active: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", _always
)
