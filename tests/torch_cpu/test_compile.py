"""`torch.compile`: whole graphs, from a process's first call on, and one graph for every size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.c_library import KERNEL_SIZE, LibraryDirectory
from support.fresh_process import run_fresh
from support.kernel_double import Doubles
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._dynamo.utils import counters

import natc
from natc.functional import na1d_av, na1d_qk, na1d_qkvpacked
from natc.models import NAT
from natc.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D

MODULES = {1: NeighborhoodAttention1D, 2: NeighborhoodAttention2D, 3: NeighborhoodAttention3D}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def compiled(function: Any, dynamic: bool | None = None) -> Any:
    return torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)


# The first call of natc in each of these processes is a compiled one. They are forks of a process
# that has only imported torch and natc.
FIRST = """
import os, torch, natc
from torch._dynamo.utils import counters
from natc.nn import NeighborhoodAttention2D
options = {"fullgraph": True, "backend": "aot_eager"}

def functions():
    def attend(qkv, rpb):
        query, key, value = qkv.unbind(-3)
        output, lse = natc.na1d(query, key, value, 3, rpb=rpb, return_lse=True)
        packed = natc.functional.na1d_qkvpacked(qkv, 3, rpb=rpb, is_causal=True)
        heads_first = query.movedim(-2, 1)
        attn = natc.functional.na1d_qk(heads_first, heads_first, 3, dilation=2)
        half = natc.functional.na1d_av(attn.softmax(-1), heads_first, 3, dilation=2)
        tokens = natc.na1d(
            query, key, value, 3, additional_keys=key, additional_values=value
        )
        merged, _ = natc.merge_attentions([output, tokens], [lse, lse])
        return output, lse, packed, half.movedim(1, -2), merged
    # Sizes that are equal at first, torch takes for one and the same.
    call = torch.compile(attend, dynamic=True, **options)
    with torch.no_grad():
        for batch, length in ((6, 7), (4, 7), (9, 12), (5, 4)):
            tensors = torch.randn(batch, length, 3, 2, 8), torch.randn(2, 5)
            torch.testing.assert_close(call(*tensors), attend(*tensors))

def training():
    module = NeighborhoodAttention2D(16, 2, 3, pad_small_maps=True)
    call = torch.compile(module, **options)
    for batch in (2, 3, 4, 6):
        x = torch.randn(batch, 5, 4, 16, requires_grad=True)
        every = [x, *module.parameters()]
        first = torch.autograd.grad(call(x).sin().sum(), every)
        torch.testing.assert_close(first, torch.autograd.grad(module(x).sin().sum(), every))

for step in (functions, training):
    pid = os.fork()
    if pid == 0:
        torch.manual_seed(0)
        step()
        print(step.__name__, counters["stats"]["unique_graphs"], flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, step
"""


def test_the_first_call_of_a_process() -> None:
    # Without `dynamic`, torch compiles the first size, then any size.
    assert run_fresh(FIRST, NATC_JIT="off") == "functions 1\ntraining 2\n"


@pytest.mark.parametrize("rank", MODULES)
def test_one_graph_serves_every_batch_and_map(doubles: Doubles, rank: int) -> None:
    module = MODULES[rank](8, 2, 3, dilation=(2,) * rank)
    call = compiled(module, dynamic=True)
    with torch.no_grad():
        for batch, larger in ((2, 0), (3, 0), (7, 4), (5, 1)):
            x = torch.randn(batch, *(n + larger for n in (5, 4, 3)[:rank]), 8)
            torch.testing.assert_close(call(x), module(x))
    assert graphs() == 1


@pytest.mark.parametrize("train", [False, True])
def test_a_network_is_compiled_once_for_its_batches(doubles: Doubles, train: bool) -> None:
    model = NAT(8, (1, 1), (1, 2), mlp_ratio=2, num_classes=3, kernel_size=3)
    weights = list(model.parameters())
    call = compiled(model)
    for batch in (2, 3, 4, 8):
        image = torch.randn(batch, 3, 20, 16)
        if not train:
            with torch.inference_mode():
                torch.testing.assert_close(call(image), model(image))
            continue
        gradients = torch.autograd.grad(call(image).square().mean(), weights)
        torch.testing.assert_close(
            gradients, torch.autograd.grad(model(image).square().mean(), weights)
        )
    assert graphs() == 2  # the first size, and any other


def test_a_dynamic_scale_is_checked_inside_a_graph(doubles: Doubles) -> None:
    def attend(x: Tensor, scale: float) -> Tensor:
        return natc.na1d(x, x, x, 3, scale=scale)

    call = compiled(attend, dynamic=True)
    x = torch.randn(2, 6, 2, 4)
    for scale in (0.5, 0.25, 0.0):
        torch.testing.assert_close(call(x, scale), attend(x, scale), rtol=0, atol=0)
    with pytest.raises(Exception, match="scale is nan; it must be finite"):
        call(x, float("nan"))


def test_wrong_arguments_are_named_inside_a_graph() -> None:
    x = torch.randn(2, 6, 2, 4)
    call = compiled(lambda key: natc.na1d(x, key, x, 3))
    with pytest.raises(Exception, match="key has shape .*; it must be"):
        call(x[:, 1:])


def test_inductor(
    kernels: LibraryDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("NOT RUN: inductor needs a C++ compiler, g++ or CXX")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def block(x: Tensor, rpb: Tensor) -> Tensor:
        x = x.relu() * 2
        return natc.na2d(x, x.transpose(1, 2).transpose(1, 2), x, KERNEL_SIZE, rpb=rpb).sin() + x

    x, rpb = torch.randn(2, 5, 6, 2, 8), torch.randn(2, 5, 5)
    call = torch.compile(block, fullgraph=True)
    # Without this, torch builds trial programs and starts processes to see if vectors work here.
    with torch._inductor.config.patch("cpp.vec_isa_ok", True):
        torch.testing.assert_close(call(x, rpb), block(x, rpb))


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
def test_compiled_autograd_sees_a_backward_pass_as_one_graph(doubles: Doubles) -> None:
    # Every graph has its own options and its own list of wanted gradients.
    for case in ((1, False), (2, True)):
        expected = gradients(*case)
        with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
            actual = gradients(*case)
        assert (actual[0] is None) is case[1]
        torch.testing.assert_close(actual, expected)
