"""Modules under `torch.func`: functional calls, ensembles, gradients of each sample, Jacobians."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.kernel_double import Doubles
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from natc.models import NAT
from natc.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D

MODULES = {1: NeighborhoodAttention1D, 2: NeighborhoodAttention2D, 3: NeighborhoodAttention3D}
assert_close = torch.testing.assert_close


def module_and_input(rank: int, batch: int = 3, **options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(rank)
    module = MODULES[rank](8, 2, 3, **options).double()
    return module, torch.randn(batch, *(5, 4, 3)[:rank], 8, dtype=torch.float64)


def loss_of(module: nn.Module) -> Any:
    def loss(state: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, state, (x,)).sin().sum()

    return loss


@pytest.mark.parametrize("rank", MODULES)
def test_gradients_of_each_sample(doubles: Doubles, rank: int) -> None:
    module, x = module_and_input(rank)
    state = {name: p.detach() for name, p in module.named_parameters()}

    def of_sample(state: dict[str, Tensor], sample: Tensor) -> Tensor:
        return loss_of(module)(state, sample[None])

    gradients = vmap(grad(of_sample), (None, 0))(state, x)
    for index, sample in enumerate(x):
        module.zero_grad()
        module(sample[None]).sin().sum().backward()
        for name, parameter in module.named_parameters():
            assert_close(gradients[name][index], parameter.grad)


@pytest.mark.parametrize("rank", [1, 2])
def test_an_ensemble_is_one_module(doubles: Doubles, rank: int) -> None:
    members = [module_and_input(rank)[0] for _ in range(3)]
    for index, member in enumerate(members):
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.mul_(index + 1)
    _, x = module_and_input(rank)
    state, buffers = stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")

    def call(state: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, (state, buffers), (x,))

    output = vmap(call, (0, 0, None))(state, buffers, x)
    assert_close(output, torch.stack([member(x) for member in members]))
    own = torch.stack([x * factor for factor in (1, 2, 3)])
    output = vmap(call)(state, buffers, own)
    assert_close(output, torch.stack([m(each) for m, each in zip(members, own, strict=True)]))
    stacked = torch.autograd.grad(output.sin().sum(), list(state.values()))
    for name, gradients in zip(state, stacked, strict=True):
        for index, member in enumerate(members):
            loss = member(own[index]).sin().sum()
            (wanted,) = torch.autograd.grad(loss, member.get_parameter(name))
            assert_close(gradients[index], wanted)


def test_jacobians_of_a_module(doubles: Doubles) -> None:
    module, x = module_and_input(1, batch=1, is_causal=True)

    def flat(flattened: Tensor) -> Tensor:
        return module(flattened.reshape(x.shape)).flatten()

    exact = torch.autograd.functional.jacobian(flat, x.flatten())
    assert_close(jacrev(flat)(x.flatten()), exact)
    assert_close(jacrev(flat, chunk_size=7)(x.flatten()), exact)
    assert_close(jacfwd(flat)(x.flatten()), exact)
    tangent = torch.randn_like(x)
    assert_close(jvp(module, (x,), (tangent,))[1].flatten(), exact @ tangent.flatten())
    _, pull = vjp(module, x)
    assert_close(pull(tangent)[0].flatten(), tangent.flatten() @ exact)
    # Several at once: batching rules inside out.
    tangents = torch.randn(4, *x.shape, dtype=x.dtype)
    pushed = vmap(lambda direction: jvp(module, (x,), (direction,))[1])(tangents)
    assert_close(pushed.flatten(1), tangents.flatten(1) @ exact.T)


def test_vmap_in_vmap(doubles: Doubles) -> None:
    module, _ = module_and_input(2)
    x = torch.randn(2, 3, 1, 5, 4, 8, dtype=torch.float64)
    output = vmap(vmap(module), in_dims=1, out_dims=1)(x)
    assert_close(output, module(x.flatten(0, 2)).reshape(x.shape))


def test_a_network_under_transforms(doubles: Doubles) -> None:
    model = NAT(8, (1, 1), (1, 2), mlp_ratio=2, num_classes=3, kernel_size=3).double().eval()
    state = {name: p.detach() for name, p in model.named_parameters()}
    images = torch.randn(2, 3, 20, 16, dtype=torch.float64)

    def of_image(state: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, state, (image[None],)).square().sum()

    gradients = vmap(grad(of_image), (None, 0))(state, images)
    for index, image in enumerate(images):
        wanted = torch.autograd.grad(model(image[None]).square().sum(), list(model.parameters()))
        for per_image, expected in zip(gradients.values(), wanted, strict=True):
            assert_close(per_image[index], expected)
