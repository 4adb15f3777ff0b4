"""The arguments that candidates are checked and timed with, for every operation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natc.checks.inputs import poisoned
from natc.checks.operations import Call, check_operations
from natc.dispatch.call import Options
from natc.dispatch.fused_backward import chunks
from natc.errors import CheckError, TuneError
from natc.operations import HEADS_FIRST, OPERATIONS
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
    tensors = _Tensors(spec, signature.layout, shape, device)
    inputs = [
        getattr(tensors, name)()
        for name in signature.tensors
        if name not in signature.results and (name != "rpb" or spec.rpb)
    ]
    results = [poisoned(*tensors.result(name), device) for name in signature.results]
    ones = (1,) * spec.rank
    terms: dict[str, Any] = dict.fromkeys(spec.terms, 1.0)
    options = Options(
        spec.kernel_size, ones, ones, (False,) * spec.rank, spec.head_dim**-0.5, **terms
    )
    extra = (-math.inf,) if operation == "qk" else ()
    return (*inputs, *results, *options.scalars(shape[1:-1]), 1, *extra)


class _Tensors:
    """Makes the tensors of one problem; a method for each name in `natc.operations`."""

    def __init__(
        self, spec: KernelSpec, layout: str, shape: Shape, device: torch.device | str
    ) -> None:
        self.spec, self.device = spec, device
        self.dtype = getattr(torch, spec.dtype)
        self.acc = getattr(torch, spec.accumulator)
        batch, *sizes, heads = shape
        self.leading, self.heads = (batch, *sizes), heads
        first = (batch, heads, *sizes)
        self.sites = first if layout == HEADS_FIRST else (batch, *sizes, heads)
        self.taps = math.prod(spec.kernel_size)
        self.offsets = tuple(2 * size - 1 for size in spec.kernel_size)
        self.chance = torch.Generator(device).manual_seed(0)

    def _draw(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.chance, device=self.device)
        return values.to(dtype or self.dtype)

    def query(self) -> Tensor:
        return self._draw(*self.sites, self.spec.head_dim)

    key = query

    def value(self) -> Tensor:
        return self._draw(*self.sites, self.spec.value_dim)

    d_output = output = vector = value

    def qkv(self) -> Tensor:
        return self._draw(*self.leading, 3, self.heads, self.spec.head_dim)

    def rpb(self) -> Tensor:
        return self._draw(self.heads, *self.offsets, dtype=self.acc)

    def lse(self) -> Tensor:
        # Near the logsumexp of random logits, so that probabilities are neither 0 nor infinite.
        return torch.full(self.sites, math.log(self.taps) + 1, dtype=self.acc, device=self.device)

    def correction(self) -> Tensor:
        return torch.zeros(self.sites, dtype=self.acc, device=self.device)

    def delta(self) -> Tensor:
        return self._draw(*self.sites, dtype=self.acc)

    def attn(self) -> Tensor:
        return self._draw(*self.sites, self.taps)

    d_attn = attn

    def result(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return the shape and the dtype of a result."""
        if name in ("lse", "delta", "correction"):
            return self.sites, self.acc
        if name == "partial":
            chunk_bytes = self.acc.itemsize * self.heads * math.prod(self.offsets)
            like = torch.empty(0, dtype=self.dtype, device=self.device)
            query = like.new_empty((1,)).expand((*self.leading, self.heads, self.spec.head_dim))
            return (chunks(query, chunk_bytes), self.heads, *self.offsets), self.acc
        last = {"attn": self.taps, "output": self.spec.value_dim, "d_value": self.spec.value_dim}
        return (*self.sites, last.get(name, self.spec.head_dim)), self.dtype
