"""Gradients that are not there: of results that were not used, or came to nothing further on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.kernel_double import Doubles
from torch import Tensor

import natc
from natc.functional import na1d_av, na1d_qk, na1d_qkvpacked


class Dropped(torch.autograd.Function):
    """Pass tensors on, and no gradients back."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor * 1 for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * len(grads)


CALLS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "fused": lambda x: natc.na1d(x, x, x, 3, return_lse=True),
    "packed": lambda x: na1d_qkvpacked(torch.stack((x, x, x), -3), 3, return_lse=True),
    "qk": lambda x: (na1d_qk(x, x, 3),),
    "av": lambda x: (na1d_av(x[..., :3], x, 3),),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_no_gradient_of_any_result_launches_nothing(name: str, doubles: Doubles) -> None:
    x = torch.randn(2, 6, 2, 4, requires_grad=True)
    results = Dropped.apply(*CALLS[name](x))
    doubles.calls.clear()
    sum(result.sum() for result in results).backward()
    assert x.grad is None and doubles.calls == []


@pytest.mark.parametrize("name", ["fused", "packed"])
@pytest.mark.parametrize("used", [0, 1])
def test_an_undefined_gradient_counts_as_zero(name: str, used: int, doubles: Doubles) -> None:
    x = torch.randn(2, 6, 2, 4, requires_grad=True)
    results = CALLS[name](x)
    (gradient,) = torch.autograd.grad(results[used].sin().sum(), x, retain_graph=True)
    weights = (1.0, 0.0) if used == 0 else (0.0, 1.0)
    total = sum(weight * t.sin().sum() for weight, t in zip(weights, results, strict=True))
    (expected,) = torch.autograd.grad(total, x)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, expected)


def test_undefined_gradients_of_gradients(doubles: Doubles) -> None:
    """Of two gradients, the one whose own is undefined adds nothing."""
    leaves = [torch.randn(2, 6, 2, 4, requires_grad=True) for _ in range(3)]
    output = natc.na1d(*leaves, 3)
    grads = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
    gradients = torch.autograd.grad(grads[0].sin().sum(), leaves, retain_graph=True)
    total = grads[0].sin().sum() + sum((0 * grad).sum() for grad in grads[1:])
    torch.testing.assert_close(gradients, torch.autograd.grad(total, leaves, retain_graph=True))
    dropped = Dropped.apply(*grads)
    nothing = torch.autograd.grad(sum(grad.sum() for grad in dropped), leaves, allow_unused=True)
    assert all(grad is None or not grad.any() for grad in nothing)
