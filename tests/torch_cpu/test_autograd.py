"""What autograd does with results: they are changed in place, saved, or have no gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.kernel_double import Doubles
from torch import Tensor

import natc
from natc.functional import na1d_av, na1d_qk, na1d_qkvpacked


def heads_first(x: Tensor) -> Tensor:
    return x.movedim(-2, 1)


CALLS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "fused": lambda x: (natc.na1d(x, x, x, 3),),
    "fused, lse": lambda x: natc.na1d(x, x, x, 3, return_lse=True),
    "packed": lambda x: (na1d_qkvpacked(torch.stack((x, x, x), -3), 3),),
    "packed, lse": lambda x: na1d_qkvpacked(torch.stack((x, x, x), -3), 3, return_lse=True),
    "qk": lambda x: (na1d_qk(heads_first(x), heads_first(x), 3),),
    "av": lambda x: (na1d_av(heads_first(x)[..., :3], heads_first(x), 3),),
}


def gradients(x: Tensor) -> tuple[Tensor, ...]:
    rpb = torch.ones(x.shape[-2], 5, requires_grad=x.requires_grad)
    leaves = [t.detach().requires_grad_() for t in (x, x, x, rpb)]
    output = natc.na1d(*leaves[:3], 3, rpb=leaves[3])
    return torch.autograd.grad(output.sin().sum(), leaves, create_graph=x.requires_grad)


# With a batch, head or token of size 1, a concatenation of parts could be a view of one part.
SHAPES = [(2, 6, 2, 4), (1, 6, 1, 4), (2, 1, 2, 4)]


@pytest.mark.parametrize("on", ["kernels", "the reference"])
@pytest.mark.parametrize("call", [*CALLS.values(), gradients], ids=[*CALLS, "gradients"])
def test_results_may_be_changed(call: Any, on: str, doubles: Doubles) -> None:
    where: Any = contextlib.nullcontext if on == "kernels" else natc.force_reference
    for shape in SHAPES:
        x = torch.randn(shape)
        with where():
            for result in call(x):
                assert result.is_contiguous() and not result._is_view()
                result.detach_()
                result.requires_grad_()
            results = call(x.requires_grad_())
        for result in results:
            assert result.requires_grad and not result._is_view()
            before = result.detach().clone()
            result.mul_(2).masked_fill_(result.isinf(), 0)
            assert torch.equal(result, (before * 2).masked_fill(before.isinf(), 0))


@pytest.mark.parametrize("changed", ["query", "key", "value", "rpb", "output", "lse", "nothing"])
def test_changes_of_saved_tensors_are_noticed(changed: str, doubles: Doubles) -> None:
    inputs = {name: torch.randn(2, 6, 2, 4) for name in ("query", "key", "value")}
    inputs["rpb"] = torch.randn(2, 5)
    leaves = [t.requires_grad_() for t in inputs.values()]
    tensors = {name: leaf * 1 for name, leaf in zip(inputs, leaves, strict=True)}
    results = natc.na1d(*list(tensors.values())[:3], 3, rpb=tensors["rpb"], return_lse=True)
    total = results[0].sum() + results[1].sum()
    tensors |= {"output": results[0], "lse": results[1]}
    if changed == "nothing":
        assert len(torch.autograd.grad(total, leaves)) == 4
        return
    tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, leaves)


class Dropped(torch.autograd.Function):
    """Pass tensors on, and no gradients back."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor * 1 for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * len(grads)


@pytest.mark.parametrize("name", list(CALLS))
def test_no_gradient_of_any_result_launches_nothing(name: str, doubles: Doubles) -> None:
    x = torch.randn(2, 6, 2, 4, requires_grad=True)
    results = Dropped.apply(*CALLS[name](x))
    doubles.calls.clear()
    sum(result.sum() for result in results).backward()
    assert x.grad is None and doubles.calls == []


@pytest.mark.parametrize("name", ["fused, lse", "packed, lse"])
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


@pytest.mark.parametrize("name", list(CALLS))
def test_a_call_on_the_forced_reference_derives_there(name: str, doubles: Doubles) -> None:
    x = torch.randn(2, 6, 2, 4, requires_grad=True)
    with natc.force_reference():
        output = CALLS[name](x)[0]
    (grad,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(grad.square().sum(), x)
    assert doubles.calls == [] and grad.any() and again.any()
    CALLS[name](x)[0].sin().sum().backward()
    torch.testing.assert_close(x.grad, grad)
    assert len(doubles.calls) > 1
