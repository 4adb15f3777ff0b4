"""Activation checkpointing: less is kept, and the gradients are the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.kernel_double import Doubles
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import natc
from natc.models.layers import NATBlock
from natc.nn import NeighborhoodAttention2D


def module_of(blocks: int = 1) -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "kernel_size": 3, "dilation": 1, "mlp_ratio": 2, "qkv_bias": True, "rel_pos_bias": True,
        "drop_path": 0.5, "layer_scale": 0.5, "pad_small_maps": True,
    }  # fmt: skip
    return nn.Sequential(*(NATBlock(8, 2, **options) for _ in range(blocks)))


def gradients(module: nn.Module, run: Any) -> list[Tensor]:
    x = torch.randn(3, 5, 4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch.manual_seed(2)  # for what drops out
    loss = run(x).sin().sum()
    return list(torch.autograd.grad(loss, [x, *module.parameters()]))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_have_equal_bits(doubles: Doubles, use_reentrant: bool, autocast: bool) -> None:
    module = module_of().train()

    def again(x: Tensor) -> Tensor:
        output: Any = checkpoint(module, x, use_reentrant=use_reentrant)
        return output

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if use_reentrant:  # It takes `backward` only.
            x = torch.randn(3, 5, 4, 8).requires_grad_()
            output = []
            for run in (module, again):
                torch.manual_seed(2)
                module.zero_grad()
                x.grad = None
                run(x).sin().sum().backward()
                output.append([t.grad.clone() for t in (x, *module.parameters())])
            plain, checkpointed = output
        else:
            plain, checkpointed = gradients(module, module), gradients(module, again)
    assert all(torch.equal(*pair) for pair in zip(plain, checkpointed, strict=True))
    forwards = [name for name in doubles.operations if name.startswith("forward")]
    # Once without, and twice with; the first pass of the reentrant kind needs no logsumexp.
    assert len(forwards) == 3
    assert forwards.count("forward_packed") == int(use_reentrant)


def test_selected_results_are_kept(doubles: Doubles) -> None:
    """A policy names natc's operators as it does torch's."""
    module = module_of().train()

    def keep(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        kept = operator == natc.ops.forward_lse_packed
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def again(x: Tensor) -> Tensor:
        contexts = lambda: create_selective_checkpoint_contexts(keep)  # noqa: E731
        output: Any = checkpoint(module, x, use_reentrant=False, context_fn=contexts)
        return output

    plain, selected = gradients(module, module), gradients(module, again)
    assert all(torch.equal(*pair) for pair in zip(plain, selected, strict=True))
    assert doubles.operations.count("forward_lse_packed") == 2  # not recomputed


def test_a_compiled_module_with_checkpoints(doubles: Doubles) -> None:
    module = NeighborhoodAttention2D(8, 2, 3)

    def again(x: Tensor) -> Tensor:
        output: Any = checkpoint(module, x, use_reentrant=False)
        return output

    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    plain = gradients(module, module)
    doubles.calls.clear()
    output = gradients(module, compiled)
    torch.testing.assert_close(output, plain)
    assert doubles.operations.count("forward_lse_packed") == 2
    doubles.calls.clear()
    gradients(module, torch.compile(module, fullgraph=True, backend="aot_eager"))
    assert doubles.operations.count("forward_lse_packed") == 1


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_unfused_operators(doubles: Doubles, use_reentrant: bool) -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 4).unbind()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attn = natc.functional.na1d_qk(query, key, 3, is_causal=True).softmax(-1)
        return natc.functional.na1d_av(attn, value, 3, is_causal=True)

    gradients = []
    for run in (attend, lambda *t: checkpoint(attend, *t, use_reentrant=use_reentrant)):
        tensors = [t.clone().requires_grad_() for t in (query, key, value)]
        run(*tensors).sin().sum().backward()
        gradients.append([t.grad for t in tensors])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
