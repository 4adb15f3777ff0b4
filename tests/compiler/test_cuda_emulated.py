"""CUDA kernels executed on the CPU: the source that nvcc compiles, with natc's host code.

Each call is made with threads in several orders; every access to memory is checked. Tensor cores
have tests of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from support.emulator import emulate, emulate_code
from support.forward_checks import call_forward
from torch import Tensor

from natc.checks.inputs import make_inputs
from natc.checks.operations import Call, calls, check_operations
from natc.compiler.build import cuda
from natc.compiler.build.lower import scheduled
from natc.compiler.space import registry, space_for
from natc.errors import CheckError, ScheduleError
from natc.operations import OPERATIONS, operations_of
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec
from natc.store.manifest import function_name
from natc.targets import Target

GPU = Target("cuda", "sm_90")
BIG = "na3d_k7_d4_float32_rpb"
FORWARD = ("forward", "forward_lse")
# Maps that neither tiles nor blocks of threads divide; the last has fewer sites than a block.
CALLS = {
    1: (Call((133,), heads=3, heads_kv=1), Call((2,), batch=1, heads=1, heads_kv=1)),
    2: (Call((9, 15), dilation=(4, 2), stride=(1, 2), is_causal=(False, True)),),
    3: (Call((3, 7, 5), batch=1, dilation=(1, 2, 1), stride=(2, 1, 2)),),
}
pytestmark = pytest.mark.usefixtures("one_thread")


def check(
    name: str,
    operations: Sequence[str],
    directory: Path,
    decisions: Mapping[str, int] | None = None,
) -> None:
    spec = KernelSpec.parse(name)
    library = emulate(spec, operations, directory, decisions=decisions)
    for call in (*calls(spec.kernel_size), *CALLS[spec.rank]):
        check_operations(library.in_orders, spec, call, operations)


def gathering(name: str) -> list[str]:
    every = operations_of(KernelSpec.parse(name))
    return [operation for operation in every if OPERATIONS[operation].family != "forward"]


# Gradients and unfused operators


@pytest.mark.parametrize(
    "name",
    [
        "na1d_k4_d20_float16_rpb",
        "na2d_k3x4_d16_float32_rpb",
        "na3d_k2x3x2_d12_bfloat16_rpb",
        "na2d_k2x3_d8v24_bfloat16",
        "na1d_k3_d1_float32_rpb",
        "na2d_k2x3_d16_bfloat16_rpb_softcap",
    ],
)
def test_gathering_operations(name: str, tmp_path: Path) -> None:
    check(name, gathering(name), tmp_path)


def test_channels_in_parts(tmp_path: Path) -> None:
    """Several threads to a site, as its sums would need too many registers of one."""
    check("na1d_k3_d96_float32", ["d_query", "d_value", "av"], tmp_path)


def test_channels_that_have_no_parts(tmp_path: Path) -> None:
    check("na1d_k2_d131_float32", ["d_query", "d_value"], tmp_path)


# The forward on CUDA cores


@pytest.mark.parametrize(
    ("name", "lanes"),
    [
        ("na1d_k4_d16_bfloat16_rpb", 2),
        ("na1d_k3_d1_float32", 1),
        ("na2d_k3x4_d16_float32_rpb", 4),
        ("na2d_k3_d64_float16", 8),
        ("na2d_k3x2_d5v1_float16_rpb", 1),
        ("na3d_k2_d16v32_bfloat16_rpb", 2),
        ("na2d_k3_d16_float16_softcap", 2),
    ],
)
def test_forward_in_tiles(name: str, lanes: int, tmp_path: Path) -> None:
    """Lanes of a query add up a dot product by shuffles."""
    spec = KernelSpec.parse(name)
    assert space_for(GPU, "forward", spec).name == "cuda_simt"
    check(name, FORWARD, tmp_path, {"lanes": lanes})
    source = (tmp_path / "kernels.cu").read_text()
    assert ("__shfl_down_sync(" in source.split("__global__", 1)[1]) == (lanes > 1)


def test_forward_of_one_tensor_in_tiles(tmp_path: Path) -> None:
    check("na2d_k3_d32_float16_rpb", ("forward_lse_packed",), tmp_path, {"lanes": 4})


@pytest.mark.parametrize(
    "name",
    [
        "na1d_k4_d20_bfloat16",
        "na2d_k3x4_d16_float32_rpb",
        "na3d_k2x3x2_d12v96_float16_rpb",
        "na2d_k1x2_d8_float32_rpb",
    ],
)
def test_forward_in_two_passes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MOST_LOGITS", 1)
    assert space_for(GPU, "forward", KernelSpec.parse(name)).name == "cuda_streamed"
    check(name, FORWARD, tmp_path)


@pytest.mark.parametrize("name", ["na2d_k17_d8_float16", BIG])
def test_large_windows_take_two_passes(name: str, tmp_path: Path) -> None:
    spec = KernelSpec.parse(name)
    assert space_for(GPU, "forward_lse", spec).name == "cuda_streamed"
    assert space_for(GPU, "d_key", spec).name == "cuda_gather"
    large = {2: (18, 21), 3: (8, 9, 7)}[spec.rank]
    library = emulate(spec, ["forward_lse"], tmp_path)
    for sizes in (large, tuple(size // 3 for size in large)):
        call = Call(sizes, batch=1, heads=2, heads_kv=1)
        check_operations(library.__getitem__, spec, call, ["forward_lse"])


@pytest.mark.parametrize("passes", [1, 2])
def test_softmax_of_infinities_and_nan(
    passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if passes == 2:
        monkeypatch.setattr(registry, "MOST_LOGITS", 1)
    spec = KernelSpec.parse("na1d_k3_d16_float32_rpb")
    function = emulate(spec, ["forward_lse"], tmp_path)["forward_lse"]
    inputs = make_inputs((1, 6, 7, 16), kernel_size=spec.kernel_size)
    assert inputs.rpb is not None
    bias = inputs.rpb  # a head each: the offsets -2 .. 2 from a query to its keys
    bias[0] = -math.inf
    bias[1] = math.nan
    bias[2, 2] = math.inf
    bias[3, 2] = -math.inf
    bias[4, 2] = math.nan
    bias[5] = torch.tensor([-math.inf, math.nan, -math.inf, -math.inf, math.inf])
    bias[6] *= 1e5
    output, lse = call_forward(function, inputs, scale=0.5, with_lse=True)
    exact = neighborhood_attention(
        *inputs.to_float64()[:3], 3, scale=0.5, rpb=bias.double(), return_lse=True
    )
    same(output, exact[0])
    # Where a window holds NaN, one pass may say inf and two say NaN; the output is NaN in both.
    decided = ~exact[1].isnan()
    same(lse[decided], exact[1][decided])


def same(actual: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-5, equal_nan=True)


# Mistakes are found


MISTAKES: dict[str, tuple[str, str, str, str]] = {
    # Mistake: (operation, code to replace, its replacement, the error)
    "a shuffle left out": (
        "forward_lse",
        "t0_ptr[0] = __shfl_down_sync(mask_ptr[0], red_buf0_ptr[0], 1, 32)",
        "t0_ptr[0] = red_buf0_ptr[0]",
        "relative error",
    ),
    "the sum of another query": (
        "forward_lse",
        "(((int)threadIdx.y) * 4), 32)",
        "0, 32)",
        "relative error",
    ),
    "a lane too far": (
        "forward_lse",
        "__shfl_down_sync(mask_ptr[0], red_buf0_ptr[0], 2, 32)",
        "__shfl_down_sync(mask_ptr[0], red_buf0_ptr[0], 3, 32)",
        "relative error|are NaN",
    ),
    "half a mask": (
        "forward_lse",
        "= __activemask()",
        "= 0xffffu",
        "lane 16 calls a shuffle with mask 0000ffff, in which it is not",
    ),
    "a shuffle that a lane passes by": (
        "forward_lse",
        "t0_ptr[0] = __shfl_down_sync(",
        "if (threadIdx.x != 1) t0_ptr[0] = __shfl_down_sync(",
        "lanes that meet differ in their masks or kinds",
    ),
    "a sum that starts anywhere": (
        "forward_lse",
        "in_thread_scores_local_ptr[0] = 0x0p+0f/*0.000000e+00*/;",
        "",
        "are NaN",
    ),
    "a tile beyond the map": ("forward_lse", "< size_1)", "< size_1 + 1)", "tensor|a race"),
    "a vector between two others": (
        "forward_lse",
        "*(float4*)(key_ptr + (",
        "*(float4*)(key_ptr + (1 + ",
        "at an address that is no multiple of them",
    ),
    "too few logits": (
        "forward_lse",
        "logits_local_ptr[6];",
        "logits_local_ptr[5];",
        "outside of",
    ),
    "too many threads": (
        "forward_lse",
        "__launch_bounds__(64)",
        "__launch_bounds__(32)",
        r"a grid of \(.*\) blocks of \(4, 16, 1\) threads, at most 32",
    ),
    "a neighbor's result": (
        "d_key",
        "*(float4*)(output_ptr + (",
        "*(float4*)(output_ptr + (4 + ",
        "a race|of tensor",
    ),
    "the end of the grid": (
        "d_key",
        "((int)threadIdx.x) < ",
        "((int)threadIdx.x) <= ",
        "a race|of tensor",
    ),
}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], cuda.Generated]:
    @functools.cache
    def of(operation: str) -> cuda.Generated:
        directory = tmp_path_factory.mktemp("generated")
        return cuda.generate(MISTAKEN, GPU, {"lanes": 4}, directory, [operation])

    return of


MISTAKEN = KernelSpec.parse("na2d_k3x2_d16_float32_rpb")


@pytest.mark.parametrize("what", [None, *MISTAKES])
def test_mistakes_are_found(
    what: str | None, generated: Callable[[str], cuda.Generated], tmp_path: Path
) -> None:
    operation, old, new, message = MISTAKES[what] if what else ("forward_lse", "", "", "")
    code = generated(operation)
    assert old in code.source
    if what:
        code = dataclasses.replace(code, source=code.source.replace(old, new))
    names = {operation: function_name(MISTAKEN, operation, GPU)}
    library = emulate_code(code, names, tmp_path)

    def call() -> None:
        for shape in (Call((5, 6)), Call((3, 7), heads_kv=1)):
            check_operations(library.__getitem__, MISTAKEN, shape, [operation])

    if not what:
        call()
        return
    with pytest.raises((CheckError, RuntimeError), match=message):
        call()


# The design spaces


@pytest.mark.parametrize(("space", "name"), [("gather", "na2d_k3_d8_float16"), ("streamed", BIG)])
def test_decisions_are_checked(space: str, name: str) -> None:
    spec = KernelSpec.parse(name)
    operation = "d_key" if space == "gather" else "forward"
    for decision in ("sums", "threads"):
        with pytest.raises(ScheduleError, match=f"{decision} is 3; space cuda_{space} allows"):
            scheduled(spec, GPU, {decision: 3}, operation=operation)
    with pytest.raises(ScheduleError, match=f"colour .* cuda_{space}.* sums"):
        scheduled(spec, GPU, {"colour": 1}, operation=operation)


# The source


def test_exponentials_are_computed_by_the_gpus_own_instruction() -> None:
    spec = KernelSpec.parse("na2d_k3_d8_float32_rpb")
    for operation in ("forward_lse", "d_query", "d_key", "d_value", "d_rpb"):
        assert "T.exp2(" in scheduled(spec, GPU, {}, operation=operation).script(), operation


@pytest.mark.parametrize("operation", ["d_query", "d_key", "d_value", "d_rpb", "av", "inverse_av"])
def test_one_long_grid_axis_and_skipped_taps(operation: str) -> None:
    spec = KernelSpec.parse("na3d_k3_d8_float32_rpb")
    text = scheduled(spec, GPU, {}, operation=operation).script()
    assert "blockIdx.x" in text
    # These end at 65,535.
    assert "blockIdx.y" not in text and "blockIdx.z" not in text
    for axis in range(3):
        assert f"if attended_{axis}_local[" in text.replace("0 < ", "")
