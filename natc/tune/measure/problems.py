"""The arguments that candidates are checked and timed with, for every operation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natc.checks.inputs import poisoned
from natc.checks.operations import Call, check_operations, tensor_shape
from natc.dispatch.call import Options
from natc.dispatch.fused_backward import chunks
from natc.errors import CheckError, TuneError
from natc.operations import OPERATIONS
from natc.spec import KernelSpec
from natc.tune.measure.workload import Shape

# Odd sizes, with borders on every side and, where windows are short, an interior.
_CHECKED = (5, 9, 11)
_LONGEST_LINE = 200


def check(
    kernel: Callable[..., Any], spec: KernelSpec, operation: str, device: torch.device | str
) -> None:
    """Raise TuneError unless a kernel's results agree with the reference in float64.

    The result tensors hold NaN before the kernel runs, and lie between guards.
    """
    for call in _calls(spec):
        try:
            check_operations(lambda _: kernel, spec, call, [operation], device=device)
        except CheckError as error:
            raise TuneError(f"wrong result: {error}") from None


def _calls(spec: KernelSpec) -> list[Call]:
    sizes = _CHECKED[-spec.rank :]
    if spec.rank == 1:
        sizes = (min(2 * spec.kernel_size[0] + 5, _LONGEST_LINE),)
    dilated = tuple(2 for _ in sizes)
    return [
        Call(sizes, batch=2, heads=2, heads_kv=2),
        Call(sizes, batch=1, heads=2, heads_kv=1, dilation=dilated),
    ]


# Enough for one shape of each level: a search measures the same shapes again and again.
@functools.lru_cache(maxsize=8)
def arguments(
    spec: KernelSpec, operation: str, shape: Shape, device: torch.device | str
) -> tuple[Any, ...]:
    """Return the arguments of an operation's kernel for one shape; result tensors hold NaN.

    shape: (batch, size of each axis, heads). Key and value have as many heads; dilation is 1.
    """
    signature = OPERATIONS[operation]
    # One element, expanded: only the shape, dtype and device of a query count.
    query = torch.empty(1, dtype=getattr(torch, spec.dtype), device=device)
    partial, acc = tensor_shape(spec, operation, "partial", shape, 1)
    number = chunks(query.expand(*shape, spec.head_dim), math.prod(partial) * acc.itemsize)
    chance = torch.Generator(device).manual_seed(0)

    def tensor(name: str) -> Tensor:
        size, dtype = tensor_shape(spec, operation, name, shape, number)
        if name in signature.results:
            return poisoned(size, dtype, device)
        if name == "correction":
            return torch.zeros(size, dtype=dtype, device=device)
        if name == "lse":
            # Near random logits' logsumexp, so that probabilities are neither 0 nor infinite.
            near = math.log(math.prod(spec.kernel_size)) + 1
            return torch.full(size, near, dtype=dtype, device=device)
        return torch.randn(size, generator=chance, device=device).to(dtype)

    tensors = [tensor(name) for name in signature.tensors_of(spec.rpb)]
    ones = (1,) * spec.rank
    terms: dict[str, Any] = dict.fromkeys(spec.terms, 1.0)
    options = Options(
        spec.kernel_size, ones, ones, (False,) * spec.rank, spec.head_dim**-0.5, **terms
    )
    extra = (-math.inf,) if operation == "qk" else ()
    return (*tensors, *options.scalars(shape[1:-1]), 1, *extra)
