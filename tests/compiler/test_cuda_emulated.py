"""CUDA kernels whose threads share nothing, run on the CPU: what they compute, without a GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from tvm.tirx.build import codegen_build

from natc.build.cuda import lower
from natc.build.lower import compiler_target, scheduled
from natc.errors import ScheduleError
from natc.operations import OPERATIONS, operations_of
from natc.reference import neighborhood_attention
from natc.space import registry, space_for
from natc.spec import KernelSpec
from natc.targets import Target
from natc.testing.direct import call as call_forward
from natc.testing.emulate import emulated
from natc.testing.every_operation import Call, assert_operations_right, calls
from natc.testing.inputs import make_inputs

GPU = Target("cuda", "sm_90")
BIG = "na3d_k7_d4_float32_rpb"
FORWARD = ("forward", "forward_lse")
# Maps that neither tiles nor blocks of threads divide, and one with fewer sites than a block.
CALLS = {
    1: (Call((133,), heads=3, heads_kv=1), Call((2,), batch=1, heads=1, heads_kv=1)),
    2: (Call((9, 15), dilation=(4, 2), stride=(1, 2), is_causal=(False, True)),),
    3: (Call((3, 7, 5), batch=1, dilation=(1, 2, 1), stride=(2, 1, 2)),),
}


def check(
    name: str,
    operations: Sequence[str],
    decisions: Mapping[str, int] | None = None,
    further: Sequence[Call] = (),
) -> None:
    spec = KernelSpec.parse(name)

    @functools.cache
    def function(operation: str) -> Any:
        return emulated(spec, operation, GPU, decisions)

    for call in (*calls(spec.rank), *CALLS[spec.rank], *further):
        assert_operations_right(function, spec, call, operations)


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
        "na1d_k7_d24_float32",
        "na2d_k2x3_d8v24_bfloat16",
        "na2d_k3x2_d5v1_float16_rpb",
        "na1d_k3_d1_float32_rpb",
    ],
)
def test_gathering_operations(name: str) -> None:
    check(name, gathering(name))


def test_channels_in_parts() -> None:
    """Several threads to a site; vectors of sites that are read again for each tap."""
    operations = ["d_query", "d_key", "d_value", "av"]
    check("na1d_k3_d96_float16", operations, {"sums": 32, "site_bytes": 0})


def test_channels_that_have_no_parts() -> None:
    check("na1d_k2_d131_float32", ["d_query", "d_value"])


# The forward


@pytest.mark.parametrize(
    "name",
    ["na1d_k4_d20_bfloat16", "na2d_k3x4_d16_float32_rpb", "na3d_k2x3x2_d12v96_float16_rpb"],
)
def test_forward_in_two_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MOST_LOGITS", 1)
    operations = [o for o in operations_of(KernelSpec.parse(name)) if o not in gathering(name)]
    check(name, operations)


@pytest.mark.parametrize("name", ["na2d_k17_d8_float16", BIG])
def test_large_windows_take_two_passes(name: str) -> None:
    spec = KernelSpec.parse(name)
    assert space_for(GPU, "forward_lse", spec).name == "cuda_streamed"
    assert space_for(GPU, "d_key", spec).name == "cuda_gather"
    large = {2: (18, 21), 3: (8, 9, 7)}[spec.rank]
    function = emulated(spec, "forward_lse", GPU)
    for sizes in (large, tuple(size // 3 for size in large)):
        call = Call(sizes, batch=1, heads=2, heads_kv=1)
        assert_operations_right(lambda _: function, spec, call, ["forward_lse"])


@pytest.mark.parametrize(
    "name", ["na1d_k4_d16_bfloat16_rpb", "na2d_k3x4_d16_float32", "na3d_k2x3x2_d12v20_float16"]
)
def test_forward_in_tiles_with_one_lane(name: str) -> None:
    spec = KernelSpec.parse(name)
    assert space_for(GPU, "forward", spec).name == "cuda_simt"
    check(name, FORWARD, {"lanes": 1})


@pytest.mark.parametrize("passes", [1, 2])
def test_softmax_of_infinities_and_nan(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if passes == 2:
        monkeypatch.setattr(registry, "MOST_LOGITS", 1)
    spec = KernelSpec.parse("na1d_k3_d4_float32_rpb")
    function = emulated(spec, "forward_lse", GPU, {"lanes": 1} if passes == 1 else None)
    inputs = make_inputs((1, 6, 7, 4), kernel_size=spec.kernel_size)
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


def same(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5, equal_nan=True)


# The design spaces


@pytest.mark.parametrize(("space", "name"), [("gather", "na2d_k3_d8_float16"), ("streamed", BIG)])
def test_decisions_are_checked(space: str, name: str) -> None:
    spec = KernelSpec.parse(name)
    operation = "d_key" if space == "gather" else "forward"
    for decision in ("sums", "threads"):
        with pytest.raises(ScheduleError, match=f"{decision} is 3; space cuda_{space} allows"):
            scheduled(spec, GPU, {decision: 3}, operation=operation)
    with pytest.raises(
        ScheduleError, match=f"colour is not of space cuda_{space}, which has sums"
    ):
        scheduled(spec, GPU, {"colour": 1}, operation=operation)


# What is emulated


def test_threads_that_work_together_are_refused() -> None:
    # Lanes of a query add up a dot product together.
    with pytest.raises(AssertionError, match="loops over threadIdx.x follow each other"):
        emulated(KernelSpec.parse("na2d_k3_d32_float32"), "forward", GPU)


@pytest.mark.parametrize(
    "name", ["na1d_k3_d32_float16", "na2d_k3_d32_float16", "na3d_k2_d32_float16"]
)
def test_lanes_of_a_query_add_up_by_shuffles(name: str) -> None:
    """Emulation cannot see it: a sum over lanes that was lowered to one of each lane's own."""
    spec = KernelSpec.parse(name)
    for lanes, shuffles in ((4, True), (1, False)):
        module = scheduled(spec, GPU, {"lanes": lanes}, operation="forward_lse")
        _, device = lower(module, GPU)
        source = codegen_build(device, compiler_target(GPU)).inspect_source("cuda")
        assert ("__shfl_down_sync(" in source) == shuffles
        # A block of threads has no barrier that part of it may not reach.
        assert "__syncthreads" not in source and "__shared__" not in source


def test_the_exponential_is_the_gpus() -> None:
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
