"""Problems that `attention.py` times, their tensors, and what their results should be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from natc import reference
from natc.checks.inputs import make_inputs

# So many positions of each axis are compared, of the first head of the first image.
COMPARED = 8
RESULTS = ("output", "d_query", "d_key", "d_value")


@dataclass(frozen=True)
class Problem:
    """One call: `[batch, height, width, heads, head_dim]`, a square window, one dilation."""

    batch: int
    height: int
    width: int
    heads: int
    head_dim: int
    kernel: int
    dilation: int = 1
    dtype: str = "float16"
    rpb: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The shape of the query."""
        return self.batch, self.height, self.width, self.heads, self.head_dim

    @property
    def tensor_bytes(self) -> int:
        """The bytes of query, key, value or output."""
        tokens = self.batch * self.height * self.width * self.heads
        return tokens * self.head_dim * getattr(torch, self.dtype).itemsize

    def floor_bytes(self, *, backward: bool) -> int:
        """The bytes of each tensor once: four forward, eight more backward, and the bias."""
        bias = 4 * self.heads * (2 * self.kernel - 1) ** 2 if self.rpb else 0
        return (12 if backward else 4) * self.tensor_bytes + (3 if backward else 1) * bias

    def __str__(self) -> str:
        text = f"{self.batch}x{self.height}x{self.width}x{self.heads}x{self.head_dim}"
        text += f" K={self.kernel}"
        if self.dilation > 1:
            text += f" dilation {self.dilation}"
        return f"{text} {self.dtype}{' with bias' if self.rpb else ''}"


# The four levels of NAT at 224 x 224, a level of DiNAT, and three shapes of generators of images.
NAT = (
    Problem(128, 56, 56, 2, 32, 7),
    Problem(128, 28, 28, 4, 32, 7),
    Problem(128, 14, 14, 8, 32, 7),
    Problem(128, 7, 7, 16, 32, 7),
    Problem(32, 56, 56, 4, 32, 7, 8),
    Problem(8, 128, 128, 8, 64, 13),
    Problem(2, 256, 256, 8, 64, 21),
    Problem(1, 64, 64, 16, 128, 25),
)
_CURVE_SIDES = (7, 10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 256)
_CURVE_TOKENS = 128 * 28 * 28
SUITES = {
    "nat": NAT,
    "curve": tuple(
        Problem(max(1, _CURVE_TOKENS // side**2), side, side, 4, 32, 7) for side in _CURVE_SIDES
    ),
    "small": (
        Problem(2, 9, 11, 2, 8, 3),
        Problem(1, 12, 12, 1, 8, 3, 2, rpb=True),
    ),
}


def variants(problem: Problem) -> list[Problem]:
    """Return a problem as it is asked of natc alone: with a bias, and in the other 16-bit type."""
    found = [replace(problem, rpb=True)]
    if problem.dtype == "float16":
        found.append(replace(problem, dtype="bfloat16"))
    return found


@dataclass(frozen=True)
class Tensors:
    """The tensors of a problem, `[batch, height, width, heads, head_dim]`; rpb may be None."""

    query: Tensor
    key: Tensor
    value: Tensor
    rpb: Tensor | None
    d_output: Tensor


def tensors_of(problem: Problem, device: str) -> Tensors:
    """Return random tensors of a problem; the same on every run."""
    made = make_inputs(
        problem.shape,
        kernel_size=(problem.kernel,) * 2 if problem.rpb else None,
        dtype=getattr(torch, problem.dtype),
        device=device,
    )
    generator = torch.Generator().manual_seed(1)
    d_output = torch.randn(problem.shape, generator=generator).to(made.query.dtype).to(device)
    return Tensors(*made, d_output)


def expected(problem: Problem, tensors: Tensors, *, full: bool) -> dict[str, Tensor]:
    """Return a corner of the results, in float64, of the first head of the first image.

    full: of attention to all tokens. A corner of a map has the results of the whole map where no
    window, and no query that attends to a key, reaches beyond it.
    """
    reach = 0
    if not full:
        reach = (problem.kernel // 2 + problem.kernel - 1) * problem.dilation
    rows, columns = (
        size if full else min(size, COMPARED + reach) for size in (problem.height, problem.width)
    )
    whole = [tensors.query, tensors.key, tensors.value, tensors.d_output]
    query, key, value, d_output = (t[:1, :rows, :columns, :1].double() for t in whole)
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    if full:
        flat = [tensor.flatten(1, 2).transpose(1, 2) for tensor in leaves]
        output: Any = functional.scaled_dot_product_attention(*flat)
        output = output.transpose(1, 2).unflatten(1, (rows, columns))
    else:
        rpb = None if tensors.rpb is None else tensors.rpb[:1].double()
        output = reference.neighborhood_attention(
            *leaves, problem.kernel, dilation=problem.dilation, rpb=rpb
        )
    gradients = torch.autograd.grad(output, leaves, d_output)
    found = dict(zip(RESULTS, (output.detach(), *gradients), strict=True))
    return {name: corner(problem, tensor) for name, tensor in found.items()}


def corner(problem: Problem, tensor: Tensor) -> Tensor:
    """Return what is compared of a result `[batch, height, width, heads, channels]`."""
    return tensor[:1, : min(problem.height, COMPARED), : min(problem.width, COMPARED), :1]


def largest_error(problem: Problem, found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the largest error of any result, as a share of that result's largest value."""
    errors = []
    for name, tensor in found.items():
        found_corner = corner(problem, tensor).detach().double()
        difference = (found_corner - exact[name]).abs().max()
        # NaN must not pass for the smallest.
        errors.append(float(difference / exact[name].abs().max()))
    return max(errors, key=lambda error: (error != error, error))
