"""One problem to time: its tensors, the work that it takes, and what its results should be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from natc import reference
from natc.checks.inputs import Inputs, inputs_of
from natc.checks.tolerance import relative_errors
from natc.errors import ArgumentError
from natc.spec import KernelSpec
from natc.store.records import shape_key
from natc.window import window

# The reference may take this much memory; a larger problem is compared on a corner of its map.
_REFERENCE_BYTES = 2**30
# Positions of each axis in that corner.
_CORNER = 8


class BenchProblem(msgspec.Struct, frozen=True):
    """One call of neighborhood attention, or with `backward` one call and its gradients.

    spec: name of the kernel. shape: of the query, `[batch, *spatial, heads, head_dim]`.
    heads_kv: heads of key and value. dilation, stride and is_causal: one for each axis.
    Raises ArgumentError for a value that no kernel takes.
    """

    spec: str
    shape: tuple[int, ...]
    heads_kv: int
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    is_causal: tuple[bool, ...]
    backward: bool = False

    def __post_init__(self) -> None:
        spec = self.kernel
        if len(self.shape) != spec.rank + 3 or min(self.shape) < 1:
            raise ArgumentError(
                f"shape is {list(self.shape)}; {spec.name} takes {spec.rank + 3} positive "
                "numbers: batch, one size for each axis, heads and head_dim."
            )
        if self.shape[-1] != spec.head_dim:
            raise ArgumentError(
                f"shape is {list(self.shape)}; its last number must be {spec.head_dim}, the "
                f"head_dim of {spec.name}."
            )
        heads = self.shape[-2]
        if self.heads_kv < 1 or heads % self.heads_kv:
            raise ArgumentError(
                f"heads_kv is {self.heads_kv}; it must divide the {heads} heads of shape "
                f"{shape_key(self.shape)}."
            )
        for name in ("dilation", "stride", "is_causal"):
            if len(getattr(self, name)) != spec.rank:
                raise ArgumentError(
                    f"{name} has {len(getattr(self, name))} numbers; {spec.name} takes "
                    f"{spec.rank}, one for each axis."
                )
        if min(self.dilation) < 1:
            raise ArgumentError(f"dilation is {list(self.dilation)}; it must be 1 or more.")
        if any(not 1 <= s <= k for s, k in zip(self.stride, spec.kernel_size, strict=True)):
            raise ArgumentError(
                f"stride is {list(self.stride)}; it must be 1 to the kernel size, "
                f"{spec.kernel_text}."
            )

    @classmethod
    def make(
        cls,
        spec: KernelSpec,
        shape: Sequence[int],
        *,
        heads_kv: int | None = None,
        dilation: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        is_causal: bool | tuple[bool, ...] = False,
        backward: bool = False,
    ) -> BenchProblem:
        """Return a problem; a single dilation, stride or flag counts for every axis.

        shape: batch, one size for each axis, and heads. heads_kv: by default, heads.
        """

        def each(value: Any) -> tuple[Any, ...]:
            return value if isinstance(value, tuple) else (value,) * spec.rank

        heads_kv = shape[-1] if heads_kv is None else heads_kv
        options = (each(dilation), each(stride), each(is_causal))
        return cls(spec.name, (*shape, spec.head_dim), heads_kv, *options, backward)

    @property
    def kernel(self) -> KernelSpec:
        """The spec of the kernel that serves it."""
        return KernelSpec.parse(self.spec)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of query, key and value."""
        return getattr(torch, self.kernel.dtype)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the call."""
        return {"dilation": self.dilation, "stride": self.stride, "is_causal": self.is_causal}

    @property
    def group(self) -> int:
        """Heads of the query for each head of key and value."""
        return self.shape[-2] // self.heads_kv

    @property
    def facts(self) -> tuple[str, ...]:
        """What distinguishes it from another problem of the same shape, in words."""
        return (
            self.spec,
            f"dilation {shape_key(self.dilation)}" if max(self.dilation) > 1 else "",
            f"stride {shape_key(self.stride)}" if max(self.stride) > 1 else "",
            f"causal {shape_key(tuple(map(int, self.is_causal)))}" if any(self.is_causal) else "",
            f"heads_kv {self.heads_kv}" if self.group > 1 else "",
            "forward and backward" if self.backward else "forward",
        )


class Work(msgspec.Struct, frozen=True):
    """The least that a problem takes: operations (a multiply-add is two) and bytes moved."""

    operations: int
    bytes: int


def work(problem: BenchProblem) -> Work:
    """Return the work of a problem: of its forward, and with `backward` of its gradients too."""
    forward = forward_work(problem)
    if not problem.backward:
        return forward
    gradients = gradients_work(problem)
    return Work(forward.operations + gradients.operations, forward.bytes + gradients.bytes)


def forward_work(problem: BenchProblem) -> Work:
    """Return the work of a forward: two products of every query with its window.

    Each tensor is moved once.
    """
    spec = problem.kernel
    operations = 2 * _pairs(problem) * (spec.head_dim + spec.value_dim)
    return Work(operations, _tensor_bytes(problem))


def gradients_work(problem: BenchProblem) -> Work:
    """Return the work of all gradients: five products of every query with its window.

    Fused kernels compute the logits again. Each tensor is moved once, and once more as a gradient.
    """
    spec = problem.kernel
    # Products with head_dim channels: the logits, d_query and d_key. The other two have value_dim
    # channels: the gradients of the probabilities, and d_value.
    operations = 2 * _pairs(problem) * (3 * spec.head_dim + 2 * spec.value_dim)
    return Work(operations, 2 * _tensor_bytes(problem))


@functools.lru_cache(maxsize=256)
def _pairs(problem: BenchProblem) -> int:
    """Return the number of pairs of a query and a key that it attends to, in all heads."""
    batch, *sizes, heads, _ = problem.shape
    pairs = batch * heads
    for size, *options in zip(
        sizes,
        problem.kernel.kernel_size,
        problem.dilation,
        problem.stride,
        problem.is_causal,
        strict=True,
    ):
        kernel_size, dilation, stride, is_causal = options
        pairs *= sum(
            window(i, size, kernel_size, dilation, stride=stride, is_causal=is_causal).count
            for i in range(size)
        )
    return pairs


def _tensor_bytes(problem: BenchProblem) -> int:
    """Return the size of query, key, value, bias and output together."""
    spec = problem.kernel
    batch, *sizes, heads, head_dim = problem.shape
    tokens = batch * math.prod(sizes) * problem.dtype.itemsize
    tensors = tokens * (heads + problem.heads_kv) * (head_dim + spec.value_dim)
    bias = 4 * heads * math.prod(2 * k - 1 for k in spec.kernel_size) if spec.rpb else 0
    return tensors + bias


@dataclass(frozen=True)
class Case:
    """A problem with its tensors; d_output is the gradient of the output in a backward."""

    problem: BenchProblem
    inputs: Inputs
    d_output: Tensor | None

    @classmethod
    def make(cls, problem: BenchProblem, device: str | torch.device = "cpu") -> Case:
        """Return a problem with random tensors: the same on every device."""
        spec = problem.kernel
        shape = (*problem.shape[:-1], spec.value_dim)
        inputs = inputs_of(spec, problem.shape[:-1], heads_kv=problem.heads_kv, device=device)
        if not problem.backward:
            return cls(problem, inputs, None)
        noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(1))
        return cls(problem, inputs, noise.to(problem.dtype).to(device))

    def leaves(self, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> list[Tensor]:
        """Return query, key and value, each changed, and a bias if there is one.

        They require gradients if the problem has a backward.
        """
        tensors = [change(tensor) for tensor in self.inputs[:3]]
        if self.inputs.rpb is not None:
            tensors.append(self.inputs.rpb)
        return [t.detach().requires_grad_(self.problem.backward) for t in tensors]


class Oracle:
    """The results of a problem in float64, by the reference.

    If the reference would take too much memory, it computes a corner of the map for the first
    entry of the batch and the first head of key and value, without a bias's gradient.
    """

    def __init__(self, case: Case) -> None:
        problem, inputs, d_output = case.problem, case.inputs, case.d_output
        self._corner = reference_bytes(problem, torch.float64) > _REFERENCE_BYTES
        if self._corner:
            # The corner is computed from a larger one, which holds the windows of its queries, and
            # the windows of all queries that attend to its keys.
            axes = zip(problem.kernel.kernel_size, problem.dilation, problem.stride, strict=True)
            reach = (
                2 * (kernel_size + stride) * dilation for kernel_size, dilation, stride in axes
            )
            cut = (slice(1), *(slice(_CORNER + length) for length in reach))
            rpb = None if inputs.rpb is None else inputs.rpb[: problem.group]
            query, key, value = (tensor[cut] for tensor in inputs[:3])
            query, key, value = query[..., : problem.group, :], key[..., :1, :], value[..., :1, :]
            inputs = Inputs(query, key, value, rpb)
            d_output = None if d_output is None else d_output[cut][..., : problem.group, :]
        leaves = [t.requires_grad_(problem.backward) for t in inputs.to_float64() if t is not None]
        attend: Any = reference.neighborhood_attention
        rpb = None if inputs.rpb is None else leaves[3]
        output = attend(*leaves[:3], problem.kernel.kernel_size, rpb=rpb, **problem.options)
        self._expected = [output.detach()]
        if d_output is not None:
            self._expected += torch.autograd.grad(output, leaves, d_output.double())

    def error(self, results: Sequence[Tensor]) -> float:
        """Return the largest error of any result, relative to its largest value; NaN if any is.

        results: output and, with a backward, the gradients of query, key, value and bias; or the
            output alone.
        """
        errors = []
        compared = self._expected if len(results) > 1 else self._expected[:1]
        for result, expected in zip(results, compared, strict=True):
            if self._corner:
                if result.ndim < results[0].ndim:
                    continue  # a bias's gradient is a sum over the whole map
                corner = (slice(1), *[slice(_CORNER)] * (result.ndim - 3))
                result = result[corner][..., : expected.shape[-2], :]
                expected = expected[corner]
            errors.append(relative_errors(result, expected).largest)
        return max(errors, key=lambda error: (math.isnan(error), error))


def reference_bytes(problem: BenchProblem, dtype: torch.dtype) -> int:
    """Return about how much memory the reference takes: it copies every window."""
    tokens = math.prod(problem.shape) * dtype.itemsize
    return (4 if problem.backward else 2) * tokens * math.prod(problem.kernel.kernel_size)
