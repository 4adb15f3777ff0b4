"""Kernels for this CPU against the reference in float64 on the same rounded inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.built_kernels import BuiltKernels, open_entry
from support.forward_checks import (
    call_forward,
    check_forward,
    check_forwards,
    maps,
    self_attention,
)
from torch import Tensor

import natc
from natc.checks.inputs import Inputs, inputs_of
from natc.compiler.build import build_library
from natc.host.detect import detect_host_cpu
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec
from natc.targets import LLVM_ARCHS, Target

# Every kernel size and dtype; head_dims that vector registers divide, and do not divide.
SPECS = [
    KernelSpec.parse(name)
    for name in (
        "na2d_k2_d1_float32_rpb",
        "na2d_k2_d32_bfloat16",
        "na2d_k3_d8_float32",
        "na2d_k3_d20_float16_rpb",
        "na2d_k4_d12_bfloat16_rpb",
        "na2d_k4_d64_float32",
        "na2d_k5_d9_float32_rpb",
        "na2d_k5_d1_float16",
        "na2d_k7_d32_float32_rpb",
        "na2d_k7_d32_float32",
        "na2d_k7_d32_float16_rpb",
        "na2d_k7_d32_bfloat16",
        "na2d_k8_d8_float16_rpb",
        "na2d_k13_d64_float32",
        "na2d_k13_d12_bfloat16_rpb",
        "na2d_k3x5_d128_float32_rpb",
        "na2d_k6x3_d20_bfloat16",
        "na2d_k6x3_d12_float16",
    )
]
SELF_ATTENTION = KernelSpec.parse("na2d_k7_d32_float32")
WITH_RPB = KernelSpec.parse("na2d_k7_d32_float32_rpb")


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_kind_of_map(built: BuiltKernels, spec: KernelSpec) -> None:
    built.need(spec, "forward", "forward_lse")
    for example in maps(spec):
        check_forwards(lambda operation: built.function(spec, operation), spec, example)


@pytest.mark.parametrize("spec", [SELF_ATTENTION, WITH_RPB], ids=str)
@pytest.mark.parametrize("leading", [(2, 7, 7, 3), (1, 6, 3, 2), (1, 1, 7, 1)], ids=str)
def test_a_window_of_the_whole_map_is_torchs_self_attention(
    built: BuiltKernels, spec: KernelSpec, leading: tuple[int, int, int, int]
) -> None:
    built.need(spec, "forward", "forward_lse")
    inputs = inputs_of(spec, leading)
    output = natc.na2d(*inputs[:3], 7, rpb=inputs.rpb)
    expected = self_attention(inputs, (7, 7))
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-6)


# The numbers of a call that become extreme: a single element of a tensor, or many.
SPOILT: dict[str, Callable[[Inputs], Tensor]] = {
    "a query": lambda inputs: inputs.query[0, 2, 3, 1, 4],
    "a key": lambda inputs: inputs.key[0, 2, 3, 1, 4],
    "a value": lambda inputs: inputs.value[0, 2, 3, 1, 4],
    "a bias": lambda inputs: inputs.rpb[1, 6, 7],
    "a head's bias": lambda inputs: inputs.rpb[1],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e4, -1e4], ids=str)
@pytest.mark.parametrize("spoilt", [*SPOILT, "every logit"])
def test_extreme_numbers_pass_through_as_in_torch(
    built: BuiltKernels, dtype: str, value: float, spoilt: str
) -> None:
    spec = KernelSpec(2, (7, 7), 32, dtype, True)
    built.need(spec, "forward", "forward_lse")
    inputs = inputs_of(spec, (1, 9, 8, 2))
    if spoilt in SPOILT:
        SPOILT[spoilt](inputs).fill_(value)
    else:
        inputs.query.mul_(value)
    output, lse = natc.na2d(*inputs[:3], 7, rpb=inputs.rpb, return_lse=True)
    expected, expected_lse = neighborhood_attention(
        *inputs[:3], 7, rpb=inputs.rpb, return_lse=True
    )
    # Logits of 1e4 and more are exact to 1e-3 in float32, and so are the probabilities.
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2, equal_nan=True)
    # Beside a logit of +inf torch's lse is +inf and a kernel's is NaN; neither means anything.
    assert torch.equal(lse.isfinite(), expected_lse.isfinite())
    assert torch.equal(lse == -math.inf, expected_lse == -math.inf)
    finite = lse.isfinite()
    torch.testing.assert_close(lse[finite], expected_lse[finite], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("arch", LLVM_ARCHS)
def test_code_for_an_older_cpu_runs_here(tmp_path: Path, arch: str) -> None:
    target = Target("llvm", arch)
    if not target.runs_on(detect_host_cpu()):
        pytest.skip(f"this machine is {detect_host_cpu()}, which does not run {target}")
    spec = KernelSpec.parse("na2d_k3x5_d20_float16_rpb")
    manifest = build_library(spec, target, tmp_path, operations=("forward_lse",), untuned=True)
    inputs = inputs_of(spec, (2, 9, 8, 3))
    results = call_forward(
        open_entry(manifest, "forward_lse"), inputs, scale=0.3, dilation=(2, 1), with_lse=True
    )
    check_forward(results, inputs, spec.kernel_size, scale=0.3, dilation=(2, 1))
