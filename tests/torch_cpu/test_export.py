"""`torch.export`: programs of any batch and map size, in files, and compiled ahead of time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from support.fresh_process import run_fresh
from torch import Tensor, nn
from torch.export import Dim

import natc
from natc import ops
from natc.models import NAT
from natc.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

MODULES = {1: NeighborhoodAttention1D, 2: NeighborhoodAttention2D, 3: NeighborhoodAttention3D}


def operators(program: torch.export.ExportedProgram) -> set[object]:
    return {node.target for node in program.graph.nodes if "natc" in str(node.target)}


@pytest.mark.parametrize("rank", MODULES)
def test_a_module_of_any_size(rank: int) -> None:
    module = MODULES[rank](8, 2, 3, dilation=2).eval()
    x = torch.randn(2, *(7, 8, 9)[:rank], 8)
    names = ("batch", "depth", "height", "width")
    sizes = {axis: Dim(names[axis]) for axis in range(rank + 1)}
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,))
    assert operators(program) == {ops.forward_packed}
    call = program.module()
    for shape in ((2, 3, 4), (11, 2, 5), (1, 9, 1)):
        x = torch.randn(3, *shape[:rank], 8)
        torch.testing.assert_close(call(x), module(x))


class Everything(nn.Module):
    """Each function once."""

    def forward(self, query: Tensor, key: Tensor, rpb: Tensor, tokens: Tensor) -> list[Tensor]:
        near, lse = natc.na1d(query, key, key, 3, rpb=rpb, dilation=2, return_lse=True)
        both = natc.na1d(query, key, key, 3, additional_keys=tokens, additional_values=tokens)
        query, key = (t.movedim(-2, 1) for t in (query, key))
        attn = natc.functional.na1d_qk(query, key, 3, rpb=rpb, is_causal=True)
        half = natc.functional.na1d_av(attn.softmax(-1), key, 3, is_causal=True)
        return [near, lse, both, attn, half]


def test_every_function_of_any_size() -> None:
    batch, length, number = Dim("batch"), Dim("length"), Dim("number")

    def inputs(batch: int, length: int, number: int) -> tuple[Tensor, ...]:
        query, key = torch.randn(batch, length, 4, 8), torch.randn(batch, length, 2, 8)
        return query, key, torch.randn(4, 5), torch.randn(batch, number, 2, 8)

    sizes = {0: batch, 1: length}
    program = torch.export.export(
        Everything(), inputs(2, 7, 3), dynamic_shapes=(sizes, sizes, None, {0: batch, 1: number})
    )
    assert operators(program) == {ops.forward_lse, ops.qk, ops.av}
    for tensors in (inputs(3, 5, 4), inputs(1, 12, 9)):
        torch.testing.assert_close(program.module()(*tensors), Everything()(*tensors))


def test_a_network_in_another_process(tmp_path: Path) -> None:
    """Images of any size whose maps hold a window, which a padding network asks of its sizes."""
    model = NAT(8, (1, 1), (1, 2), mlp_ratio=2, num_classes=3, kernel_size=3).eval()
    sizes = {0: Dim("batch"), 2: Dim("height", min=32), 3: Dim("width", min=32)}
    image = torch.randn(2, 3, 40, 48)
    program = torch.export.export(model, (image,), dynamic_shapes=(sizes,))
    larger = torch.randn(3, 3, 33, 67)
    torch.testing.assert_close(program.module()(larger), model(larger))
    torch.export.save(program, tmp_path / "network.pt2")
    torch.save((larger, model(larger)), tmp_path / "expected.pt")
    torch.save(model, tmp_path / "network.pt")
    script = """
import sys, torch
import natc.ops  # defines the operators
program = torch.export.load(sys.argv[1])
image, expected = torch.load(sys.argv[2])
torch.testing.assert_close(program.module()(image), expected)
print("equal", "natc.models" in sys.modules)
# A pickled network, which imports its classes.
model = torch.load(sys.argv[3], weights_only=False)
torch.testing.assert_close(model(image), expected)
print(type(model).__name__)
"""
    files = (str(tmp_path / name) for name in ("network.pt2", "expected.pt", "network.pt"))
    assert run_fresh(script, *files, NATC_JIT="off") == "equal False\nNAT\n"


def test_a_training_graph_is_exported() -> None:
    module = NeighborhoodAttention1D(8, 2, 3)
    program = torch.export.export(module, (torch.randn(2, 6, 8),))
    retrained = program.module()
    x = torch.randn(2, 6, 8)
    retrained(x).sin().sum().backward()
    module(x).sin().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(retrained.get_parameter(name).grad, parameter.grad)


def test_decompositions_leave_the_operators() -> None:
    module = NeighborhoodAttention2D(8, 2, 3).eval()
    program = torch.export.export(module, (torch.randn(2, 6, 5, 8),)).run_decompositions()
    assert operators(program) == {ops.forward_packed}


def test_compiled_ahead_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("NOT RUN: AOTInductor needs a C++ compiler, g++ or CXX")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))

    class Attention(nn.Module):
        def forward(self, x: Tensor, rpb: Tensor) -> Tensor:
            return natc.na1d(x, x, x, 3, rpb=rpb, dilation=2)

    x, rpb = torch.randn(2, 7, 2, 8), torch.randn(2, 5)
    sizes = {0: Dim("batch"), 1: Dim("length")}
    program = torch.export.export(Attention(), (x, rpb), dynamic_shapes=(sizes, None))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "attention.pt2")
    )
    call = torch._inductor.aoti_load_package(package)
    for shape in ((2, 7), (3, 9), (1, 4)):
        x = torch.randn(*shape, 2, 8)
        torch.testing.assert_close(call(x, rpb), Attention()(x, rpb))
