"""Calls each operation of a kernel directly and compares it with the reference in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from natc.checks.guarded import call_guarded, scalars
from natc.checks.inputs import Inputs, inputs_of
from natc.checks.tolerance import check_close
from natc.dispatch.sweep import is_swept
from natc.errors import CheckError
from natc.operations import EXACT_BELOW, GRADIENTS, HEADS_FIRST, OPERATIONS
from natc.reference import neighborhood_attention, neighborhood_logits, neighborhood_sum
from natc.spec import KernelSpec


@dataclass(frozen=True)
class Call:
    """One call of a kernel: the map's sizes, and options with one entry for each axis.

    heads_kv divides heads; chunks: how many partial sums `d_rpb` and `sum_rpb` return.
    """

    sizes: tuple[int, ...]
    batch: int = 2
    heads: int = 4
    heads_kv: int = 2
    dilation: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    is_causal: tuple[bool, ...] | None = None
    scale: float = 0.3
    chunks: int = 3

    @property
    def window(self) -> dict[str, Any]:
        """The options with an entry for each axis."""
        unit_steps = (1,) * len(self.sizes)
        not_causal = (False,) * len(self.sizes)
        return {
            "dilation": self.dilation or unit_steps,
            "stride": self.stride or unit_steps,
            "is_causal": self.is_causal or not_causal,
        }

    @property
    def options(self) -> dict[str, Any]:
        """The options in the form that the reference takes."""
        return {
            "dilation": self.dilation or 1,
            "stride": self.stride or 1,
            "is_causal": self.is_causal or False,
        }


def check_operations(
    function: Callable[[str], Callable[..., Any]],
    spec: KernelSpec,
    call: Call,
    operations: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> None:
    """Raise CheckError unless each operation's results agree with the reference in float64.

    function: returns the compiled function of an operation, which `call_guarded` calls. An
    operation that needs an earlier result (lse) gets the reference's. `gradients` is skipped
    for a call that it does not serve.
    """
    shared = _problem(spec, call, device, seed)
    for operation in operations:
        if operation == GRADIENTS and not is_swept(spec.kernel_size, call.sizes, **call.window):
            continue
        problem = shared
        if operation.endswith("_packed"):  # one tensor cannot hold keys of fewer heads
            problem = _problem(spec, replace(call, heads_kv=call.heads), device, seed)
        inputs, expected = getattr(problem, operation)()
        names = OPERATIONS[operation].results_of(spec.rpb)
        shapes = [tensor_shape(spec, operation, n, problem.sites, call.chunks) for n in names]
        tail = (*problem.scalars, -math.inf) if operation == "qk" else problem.scalars
        results = call_guarded(function(operation), operation, inputs, shapes, tail)
        for result, exact, name in zip(results, expected, names, strict=True):
            summed = problem.summed(operation, name, result.double().cpu()).reshape(exact.shape)
            check_close(summed, exact, problem.dtype, f"{operation}: {name}")


def tensor_shape(
    spec: KernelSpec, operation: str, name: str, shape: Sequence[int], chunks: int
) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape and the dtype of an operation's tensor (`natc.operations`).

    shape: (batch, size of each axis, heads); key and value have as many heads. chunks: the number
    of partial sums of a bias's gradient.
    """
    batch, *sizes, heads = shape
    dtype, acc = (getattr(torch, name) for name in (spec.dtype, spec.accumulator))
    offsets = [2 * k - 1 for k in spec.kernel_size]
    heads_first = OPERATIONS[operation].layout == HEADS_FIRST
    sites = (batch, heads, *sizes) if heads_first else (batch, *sizes, heads)
    if name in ("rpb", "partial", "d_rpb"):
        return (*([chunks] if name == "partial" else []), heads, *offsets), acc
    if name in ("lse", "d_lse", "delta", "correction"):
        return sites, acc
    if name == "qkv":
        return (batch, *sizes, 3, heads, spec.head_dim), dtype
    if name in ("attn", "d_attn"):
        return (*sites, math.prod(spec.kernel_size)), dtype
    of_values = name in ("value", "d_value", "output", "d_output")
    return (*sites, spec.value_dim if of_values else spec.head_dim), dtype


# The number of each term of a kernel's logits.
_TERM = 1.5

_Prepared = tuple[Sequence[Tensor | None], Sequence[Tensor]]


class _Problem:
    """Inputs and expected results of every operation; one method for each, named like it.

    A method returns (inputs, expected results).
    """

    def __init__(
        self, spec: KernelSpec, call: Call, device: torch.device | str, seed: int
    ) -> None:
        self.spec, self.call = spec, call
        self.dtype = getattr(torch, spec.dtype)
        self.acc = getattr(torch, spec.accumulator)
        b, s, h = call.batch, call.sizes, call.heads
        drawn = inputs_of(spec, (b, *s, h), heads_kv=call.heads_kv, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)

        def draw(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        rpb = None if drawn.rpb is None else drawn.rpb.to(self.acc)
        self.inputs = Inputs(drawn.query, drawn.key, drawn.value, rpb)
        self.sites = (b, *s, h)
        self.d_output = draw(*self.sites, spec.value_dim, dtype=self.dtype)
        self.attn = draw(b, h, *s, math.prod(spec.kernel_size), dtype=self.dtype)
        self.terms = dict.fromkeys(spec.terms, _TERM)
        self.scalars = scalars(
            self.inputs, call.scale, call.dilation, call.stride, call.is_causal, **self.terms
        )
        self.device = device
        self.d_lse = d_lse = draw(*self.sites, dtype=self.acc)
        self._exact = _Exact(self, d_lse)
        output = self._exact.output.detach().to(self.dtype)
        self.output = output
        self.lse = self._exact.lse.detach().to(self.acc)
        delta = (self.d_output.double() * output.double()).sum(-1) - d_lse.double()
        self.delta_less = delta.to(self.acc)
        self.correction = torch.zeros_like(self.lse)

    def summed(self, operation: str, name: str, result: Tensor) -> Tensor:
        """Return a result summed over heads that share a key, or over chunks, as callers do."""
        if name in ("d_key", "d_value"):
            return result.unflatten(-2, (self.call.heads_kv, -1)).sum(-2)
        if operation == "inverse_av":
            return result.unflatten(1, (self.call.heads_kv, -1)).sum(2)
        return result.sum(0) if name == "partial" else result

    def _on(self, *tensors: Tensor | None) -> list[Tensor | None]:
        return [None if t is None else t.to(self.device) for t in tensors]

    def forward(self) -> _Prepared:
        return self._on(*self.inputs), [self._exact.output.detach()]

    def forward_lse(self) -> _Prepared:
        inputs, expected = self.forward()
        return inputs, [*expected, self._exact.lse.detach()]

    def forward_packed(self) -> _Prepared:
        packed = torch.stack(self.inputs[:3], -3)
        return self._on(packed, self.inputs.rpb), self.forward()[1]

    def forward_lse_packed(self) -> _Prepared:
        return self.forward_packed()[0], self.forward_lse()[1]

    def delta(self) -> _Prepared:
        query, key, _, rpb = self.inputs
        # Half of the queries get an lse that is off by as much as a correction is made for.
        lse = self.lse + torch.where(self.lse > self.lse.median(), 2 * EXACT_BELOW, 0.0)
        inputs = self._on(query, key, rpb, self.d_output, self.output, lse)
        delta = (self.d_output.double() * self.output.double()).sum(-1)
        off = self._exact.lse.detach() - lse.double()
        correction = torch.where(lse.abs() < EXACT_BELOW, 0.0, off)
        return inputs, [delta, correction]

    def d_query(self) -> _Prepared:
        return self._gradient("query")

    def d_key(self) -> _Prepared:
        return self._gradient("key")

    def d_value(self) -> _Prepared:
        query, key, _, rpb = self.inputs
        inputs = self._on(query, key, rpb, self.d_output, self.lse, self.correction)
        return inputs, [self._exact.gradients["value"]]

    def d_rpb(self) -> _Prepared:
        return self._gradient("rpb")

    def gradients(self) -> _Prepared:
        inputs = self._on(*self.inputs, self.d_output, self.d_lse)
        return inputs, list(self._exact.gradients.values())

    def qk(self) -> _Prepared:
        query, key, _, rpb = self.inputs
        inputs = self._on(_heads_first(query), _heads_first(key), rpb)
        return inputs, [_heads_first(self._exact.logits.detach())]

    def av(self) -> _Prepared:
        inputs = self._on(self.attn, _heads_first(self.inputs.value))
        return inputs, [_heads_first(self._exact.weighted.detach())]

    def inverse_av(self) -> _Prepared:
        inputs = self._on(self.attn, _heads_first(self.d_output))
        (exact,) = torch.autograd.grad(
            self._exact.weighted, self._exact.value, self.d_output.double(), retain_graph=True
        )
        return inputs, [_heads_first(exact)]

    def sum_rpb(self) -> _Prepared:
        logits, rpb = self._exact.logits, self._exact.rpb
        if rpb is None:
            raise CheckError(f"{self.spec.name} has no bias, so it has no sum_rpb")
        exists = logits.isfinite()
        upstream = torch.where(exists, self.attn.double().movedim(1, -2), 0.0)
        (exact,) = torch.autograd.grad(
            torch.where(exists, logits, 0.0), rpb, upstream, retain_graph=True
        )
        # The entry of a tap without a key must not count.
        poison = self.attn.masked_fill(~_heads_first(exists), math.nan)
        return self._on(poison), [exact]

    def _gradient(self, name: str) -> _Prepared:
        numbers = (self.lse, self.correction, self.delta_less)
        inputs = self._on(*self.inputs, self.d_output, *numbers)
        return inputs, [self._exact.gradients[name]]


# Cached: a search checks one candidate after the other, and each gets copies of the inputs.
_problem = functools.lru_cache(maxsize=4)(_Problem)


class _Exact:
    """The reference's results and gradients of a problem, in float64 on the CPU."""

    def __init__(self, problem: _Problem, d_lse: Tensor) -> None:
        spec, call = problem.spec, problem.call
        leaves = {
            name: tensor.double().requires_grad_()
            for name, tensor in zip(Inputs._fields, problem.inputs)
            if tensor is not None
        }
        query, key, self.value = leaves["query"], leaves["key"], leaves["value"]
        self.rpb = leaves.get("rpb")
        options = {"scale": call.scale, "rpb": self.rpb, **problem.terms, **call.options}
        results: Any = neighborhood_attention(
            query, key, self.value, spec.kernel_size, return_lse=True, **options
        )
        self.output: Tensor = results[0]
        self.lse: Tensor = results[1]
        gradients = torch.autograd.grad(
            (self.output, self.lse),
            list(leaves.values()),
            (problem.d_output.double(), d_lse.double()),
        )
        self.gradients = dict(zip(leaves, gradients))
        self.logits = neighborhood_logits(query, key, spec.kernel_size, **options)
        if spec.value_dim == spec.head_dim:
            weights = problem.attn.double().movedim(1, -2)
            self.weighted = neighborhood_sum(weights, self.value, spec.kernel_size, **call.options)


def _heads_first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-2, 1).contiguous()


def calls(kernel_size: tuple[int, ...]) -> Iterator[Call]:
    """Yield three calls that take different paths through a kernel of this window."""
    rank = len(kernel_size)
    yield Call((7, 6, 5)[-rank:])
    yield Call((9, 4, 8)[-rank:], batch=1, heads=3, heads_kv=1, dilation=(1, 2, 3)[-rank:])
    strides = tuple(map(min, (1, 2, 2)[-rank:], kernel_size))
    causal = (True, False, True)[-rank:]
    yield Call((3, 2, 7)[-rank:], heads=2, stride=strides, is_causal=causal, chunks=1)
