"""Changes in place: results belong to the caller, and autograd watches saved tensors."""

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


def gradients(x: Tensor) -> tuple[Tensor, ...]:
    rpb = torch.ones(x.shape[-2], 5, requires_grad=x.requires_grad)
    leaves = [t.detach().requires_grad_() for t in (x, x, x, rpb)]
    output = natc.na1d(*leaves[:3], 3, rpb=leaves[3])
    return torch.autograd.grad(output.sin().sum(), leaves, create_graph=x.requires_grad)


CALLS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "fused": lambda x: (natc.na1d(x, x, x, 3),),
    "fused, lse": lambda x: natc.na1d(x, x, x, 3, return_lse=True),
    "packed": lambda x: (na1d_qkvpacked(torch.stack((x, x, x), -3), 3),),
    "packed, lse": lambda x: na1d_qkvpacked(torch.stack((x, x, x), -3), 3, return_lse=True),
    "qk": lambda x: (na1d_qk(heads_first(x), heads_first(x), 3),),
    "av": lambda x: (na1d_av(heads_first(x)[..., :3], heads_first(x), 3),),
    "gradients": gradients,
}
# With a batch, head or token of size 1, a concatenation of parts could be a view of one part.
SHAPES = [(2, 6, 2, 4), (1, 6, 1, 4), (2, 1, 2, 4)]


@pytest.mark.parametrize("on", ["kernels", "the reference"])
@pytest.mark.parametrize("name", list(CALLS))
def test_results_may_be_changed(name: str, on: str, doubles: Doubles) -> None:
    where: Any = contextlib.nullcontext if on == "kernels" else natc.force_reference
    for shape in SHAPES:
        x = torch.randn(shape)
        with where():
            for result in CALLS[name](x):
                assert result.is_contiguous() and not result._is_view()
                result.detach_()
                result.requires_grad_()
            results = CALLS[name](x.requires_grad_())
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
