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
from torch.autograd import profiler

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
        torch.compiler.is_dynamo_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        # That of any thread, as it may be one of every thread; and one that Python did not start.
        or profiler._is_profiler_enabled
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in _KINDS or torch._C._dispatch_keys(tensor).raw_repr() not in _PLAIN
        ):
            return False
    return True
