"""Compiled autograd, which traces what autograd functions do in a backward pass."""

from __future__ import annotations

import pytest
import torch
from support.kernel_double import Doubles
from torch import Tensor
from torch._dynamo import compiled_autograd

import natc
from natc.functional import na1d_av, na1d_qk, na1d_qkvpacked


def everything(x: Tensor, rpb: Tensor, dilation: int) -> Tensor:
    output, lse = natc.na1d(x, x, x, 3, rpb=rpb, dilation=dilation, return_lse=True)
    packed = na1d_qkvpacked(torch.stack((x, x, x), -3), 3, dilation=dilation)
    attn = na1d_qk(x.movedim(-2, 1), x.movedim(-2, 1), 3, rpb=rpb, dilation=dilation)
    half = na1d_av(attn.softmax(-1), x.movedim(-2, 1), 3, dilation=dilation)
    return output.square().sum() + lse.sin().sum() + packed.sin().sum() + half.square().sum()


def gradients(dilation: int, only_rpb: bool) -> list[Tensor | None]:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 2, 4, requires_grad=not only_rpb)
    rpb = torch.randn(2, 5, requires_grad=True)
    everything(x, rpb, dilation).backward()
    return [x.grad, rpb.grad]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_backward_pass_is_one_graph(doubles: Doubles) -> None:
    torch._dynamo.reset()
    try:
        # Every graph has its own options and its own list of wanted gradients.
        for case in ((1, False), (2, True)):
            expected = gradients(*case)
            with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
                actual = gradients(*case)
            assert (actual[0] is None) is case[1]
            torch.testing.assert_close(actual, expected)
    finally:
        torch._dynamo.reset()
