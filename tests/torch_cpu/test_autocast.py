"""Autocast: which tensors it casts, and the dtypes of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.kernel_double import Doubles
from torch import Tensor

import natc
from natc.models import NAT
from natc.nn import NeighborhoodAttention2D

LOW = torch.bfloat16


def fused(x: Tensor, rpb: Tensor) -> Tensor:
    return natc.na1d(x, x, x, 3, rpb=rpb)


def packed(x: Tensor, rpb: Tensor) -> Tensor:
    return natc.functional.na1d_qkvpacked(torch.stack((x, x, x), -3), 3, rpb=rpb)


def unfused(x: Tensor, rpb: Tensor) -> Tensor:
    x = x.movedim(-2, 1)
    attn = natc.functional.na1d_qk(x, x, 3, rpb=rpb)
    return natc.functional.na1d_av(attn.softmax(-1), x, 3).movedim(1, -2)


def with_tokens(x: Tensor, rpb: Tensor) -> Tensor:
    return natc.na1d(x, x, x, 3, rpb=rpb, additional_keys=x, additional_values=x)


FUNCTIONS = [fused, packed, unfused, with_tokens]


def leaves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 2, 4, generator=generator, requires_grad=True)
    return x, torch.randn(2, 5, generator=generator, requires_grad=True)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_have_their_tensors_dtypes(doubles: Doubles, function: Any) -> None:
    x, rpb = leaves()
    with torch.autocast("cpu", LOW):
        output = function(x, rpb)
        assert output.dtype == LOW
        # Also where the backward runs under autocast, as it should not.
        output.float().square().sum().backward()
    assert x.grad is not None and rpb.grad is not None
    assert x.grad.dtype == rpb.grad.dtype == torch.float32
    low, bias = (t.detach() for t in leaves())
    low, bias = low.to(LOW).requires_grad_(), bias.requires_grad_()
    expected = function(low, bias)
    assert torch.equal(output, expected)
    expected.float().square().sum().backward()
    if function is not unfused:  # whose softmax autocast runs in float32
        torch.testing.assert_close(x.grad.to(LOW), low.grad, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(rpb.grad, bias.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nested_contexts(doubles: Doubles, function: Any) -> None:
    x, rpb = leaves()
    plain = function(x, rpb)
    with torch.autocast("cpu", LOW):
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(function(x, rpb), plain)
            with torch.autocast("cpu", torch.float16):
                assert function(x, rpb).dtype == torch.float16
        assert function(x, rpb).dtype == LOW
        with torch.autocast("cuda", torch.float16):  # of another device
            assert function(x, rpb).dtype == LOW
        assert function(x.double(), rpb).dtype == torch.float64
    assert torch.equal(function(x, rpb), plain)


def test_a_network_trains_in_mixed_precision(doubles: Doubles) -> None:
    model = NAT(8, (1, 1), (1, 2), mlp_ratio=2, num_classes=3, kernel_size=3)
    image = torch.randn(2, 3, 20, 16)
    exact = torch.autograd.grad(model(image).square().sum(), list(model.parameters()))
    with torch.autocast("cpu", LOW):
        logits = model(image)
    assert logits.dtype == LOW
    logits.float().square().sum().backward()
    for parameter, wanted in zip(model.parameters(), exact, strict=True):
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        scale = wanted.abs().max()
        assert (parameter.grad - wanted).abs().max() < 0.15 * scale + 1e-4


def test_a_compiled_module_casts_as_the_eager_one(doubles: Doubles) -> None:
    module = NeighborhoodAttention2D(8, 2, 3)
    x = torch.randn(2, 4, 5, 8)

    def inside(x: Tensor) -> Tensor:
        with torch.autocast("cpu", LOW):
            return module(x)

    expected = inside(x)
    compiled = torch.compile(inside, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)
    outside = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", LOW):
        assert torch.equal(outside(x), expected)
    assert outside(x).dtype == torch.float32


def test_a_cache_of_cast_weights_is_no_trap(doubles: Doubles) -> None:
    """Autocast keeps cast weights, made without gradients, for calls that want some."""
    module = NeighborhoodAttention2D(8, 2, 3)
    x = torch.randn(1, 4, 5, 8)
    with torch.autocast("cpu", LOW):
        with torch.no_grad():
            module(x)
        module(x).float().sum().backward()
    assert module.rpb is not None and module.rpb.grad is not None
    assert module.proj.weight.grad is not None
