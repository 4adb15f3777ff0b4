"""Tensors without data: device meta, fake tensors, weights that come later, FLOPs from shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import natc
from natc import models, nn
from natc.models import NAT

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

RANKS = (1, 2, 3)


def small() -> NAT:
    return NAT(
        8, (1, 2), (1, 2), mlp_ratio=2, num_classes=5, kernel_size=3, layer_scale=0.5,
        drop_path_rate=0.1,
    )  # fmt: skip


def described(*tensors: Tensor | None) -> list[Any]:
    return [t if t is None else (t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors]


def everything(rank: int, dtype: torch.dtype) -> list[Any]:
    """Describe the results and gradients of each function, and its FLOPs, on the device set."""
    spatial = (5, 6, 7)[:rank]
    query = torch.randn(2, *spatial, 4, 8, dtype=dtype, requires_grad=True)
    key = torch.randn(2, *spatial, 2, 8, dtype=dtype, requires_grad=True)
    value = torch.randn(2, *spatial, 2, 6, dtype=dtype, requires_grad=True)
    rpb = torch.randn(4, *[5] * rank, requires_grad=True)
    keys, values = torch.randn(2, 3, 2, 8, dtype=dtype), torch.randn(2, 3, 2, 6, dtype=dtype)
    named = {
        kind: getattr(natc.functional, f"na{rank}d{kind}")
        for kind in ("", "_qkvpacked", "_qk", "_av")
    }
    descriptions = []
    options = {"dilation": 2, "is_causal": True}
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            descriptions += described(named[""](query, key, value, 3, rpb=rpb, **options))
        output, lse = named[""](
            query, key, value, 3, rpb=rpb, return_lse=True, additional_keys=keys,
            additional_values=values, **options,
        )  # fmt: skip
        first = torch.autograd.grad(
            output.sum() + lse.sum(), (query, key, value, rpb), create_graph=True
        )
        second = torch.autograd.grad(first[0].sum(), (key, value, rpb))
        descriptions += described(output, lse, *first, *second)

        qkv = torch.randn(2, *spatial, 3, 4, 8, dtype=dtype, requires_grad=True)
        output, lse = named["_qkvpacked"](qkv, 3, rpb=rpb, return_lse=True)
        gradients = torch.autograd.grad(output.sum() + lse.sum(), (qkv, rpb))
        descriptions += described(output, lse, *gradients)

        heads_first = [t.detach().movedim(-2, 1).requires_grad_() for t in (query, key, value)]
        attn = named["_qk"](
            *heads_first[:2], 3, rpb=rpb, additional_keys=keys.movedim(1, 2), **options
        )
        output = named["_av"](
            attn, heads_first[2], 3, additional_values=values.movedim(1, 2), **options
        )
        gradients = torch.autograd.grad(output.sum(), (*heads_first, rpb))
        descriptions += described(attn, output, *gradients)
    return [*descriptions, counter.get_total_flops()]


@pytest.mark.parametrize(
    ("rank", "dtype"), [(1, torch.float64), (2, torch.bfloat16), (3, torch.float32)], ids=str
)
def test_meta_and_fake_tensors_are_described_as_real_ones(rank: int, dtype: torch.dtype) -> None:
    with natc.force_reference():
        real = everything(rank, dtype)
    with torch.device("meta"):
        assert everything(rank, dtype) == real
    with FakeTensorMode():
        assert everything(rank, dtype) == real


@pytest.fixture
def autocast_of_cuda() -> Iterator[None]:
    """Do what `torch.autocast("cuda", torch.float16)` does on a machine with a GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def test_fake_tensors_of_an_absent_gpu(autocast_of_cuda: None) -> None:
    # Without gradients: torch's autograd asks the driver.
    with FakeTensorMode(), torch.device("cuda"):
        query = torch.empty(2, 5, 6, 4, 8)
        rpb = torch.empty(4, 5, 5)
        output, lse = natc.na2d(query, query, query, 3, rpb=rpb, return_lse=True)
        assert (output.device.type, output.dtype, lse.dtype) == ("cuda", torch.float16, rpb.dtype)
        packed = natc.functional.na2d_qkvpacked(torch.stack((query,) * 3, -3), 3, rpb=rpb)
        assert described(packed) == described(output)
        attn = natc.functional.na2d_qk(query, query.bfloat16(), 3)
        assert attn.dtype == torch.float16
        assert natc.na2d(*[query.double()] * 3, 3).dtype == torch.float64
        with torch.device("cpu"):
            there = torch.empty(2, 5, 3, 4, 8)
            assert natc.functional.na1d_qkvpacked(there, 3).dtype == torch.float32


def test_forward_mode_on_meta() -> None:
    x = torch.empty(2, 5, 3, 2, 4, device="meta")
    for function in (
        lambda qkv: natc.functional.na1d_qkvpacked(qkv, 3, return_lse=True),
        lambda qkv: natc.na1d(*qkv.unbind(-3), 3, return_lse=True),
    ):
        primals, tangents = torch.func.jvp(function, (x,), (x,))
        assert [t.shape for t in tangents] == [t.shape for t in primals]
        assert {t.device.type for t in (*primals, *tangents)} == {"meta"}


@pytest.mark.parametrize("rank", RANKS)
def test_modules_on_meta(rank: int) -> None:
    name = f"NeighborhoodAttention{rank}D"
    with torch.device("meta"):
        module = getattr(nn, name)(16, 2, 3, dilation=2, pad_small_maps=True)
        x = torch.empty(2, *(3, 9, 5)[:rank], 16, dtype=torch.bfloat16)
    assert module.to(torch.bfloat16)(x).shape == x.shape


def test_a_networks_shapes_and_flops_without_its_arithmetic() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = models.nat_tiny()
        image = torch.empty(2, 3, 224, 224)
        final, maps = model.forward_intermediates(image, output_fmt="NHWC")
        assert [tuple(m.shape[1:]) for m in maps] == [
            (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512),
        ]  # fmt: skip
        logits = model.forward_head(final)
    assert logits.shape == (2, 1000) and logits.device.type == "meta"
    # The published 4.3 G multiply-adds of one image.
    assert counter.get_total_flops() / 2 == pytest.approx(2 * 4.3e9, rel=0.01)


def test_weights_may_come_later() -> None:
    torch.manual_seed(3)
    eager = small()
    with torch.device("meta"):
        model = small()
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(3)
    model.init_weights()
    drawn, wanted = model.state_dict(), eager.state_dict()
    assert list(drawn) == list(wanted)
    assert all(torch.equal(drawn[name], wanted[name]) for name in wanted)

    with torch.device("meta"):
        loaded = small()
    loaded.load_state_dict(wanted, assign=True)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.eval()(image), eager.eval()(image))


@pytest.mark.parametrize("rank", RANKS)
def test_a_module_draws_its_own_parameters(rank: int) -> None:
    module = getattr(nn, f"NeighborhoodAttention{rank}D")(8, 2, 3)
    with torch.no_grad():
        module.rpb.fill_(torch.nan)
        weight = module.qkv.weight.clone()
    module.reset_parameters()
    assert 0 < module.rpb.abs().max() < 0.2
    assert torch.equal(module.qkv.weight, weight)
    getattr(nn, f"NeighborhoodAttention{rank}D")(8, 2, 3, rel_pos_bias=False).reset_parameters()
