"""Calls that reach an operator's kernel without torch's dispatcher, which would add nothing.

Dispatching to a kernel that is written in Python takes 8 microseconds, more than everything else
that natc does in a call. Plain tensors with nothing of torch's around them need none of it: no
mode, transform, trace or profiler is to see the call, and autograd is natc's own. What observes
calls without a profiler, as torch's ExecutionTraceObserver may, cannot be asked for: it sees what
a call allocates, and not the operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# By name, each of these: to find them in torch anew takes as long as some do.
from torch._C import (
    _are_functorch_transforms_active,
    _dispatch_keys,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch.autograd import profiler
from torch.compiler import is_dynamo_compiling

_KINDS = frozenset((Tensor, nn.Parameter))


def _keys(*names: str) -> int:
    found = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, names[0]))
    for name in names[1:]:
        found = found | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return found.raw_repr()


# Of a tensor that no wrapper, lazy negation or layout makes another: as torch makes it, and in
# inference mode. Autocast is in there whether or not it is on.
_PLAIN = frozenset(
    _keys(device, f"Autocast{device}", *autograd)
    for device in ("CPU", "CUDA")
    for autograd in ((), ("ADInplaceOrView", f"Autograd{device}"))
)


def goes_straight(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether a call with these tensors is nobody's but natc's."""
    if (
        # First, since what follows cannot be traced.
        is_dynamo_compiling()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _are_functorch_transforms_active()
        or _get_tracing_state() is not None
        # That of any thread, as it may be one of every thread; and one that Python did not start.
        or profiler._is_profiler_enabled
        or _profiler_enabled()
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in _KINDS or _dispatch_keys(tensor).raw_repr() not in _PLAIN
        ):
            return False
    return True
