"""Kernels for this CPU against the reference in float64 on the same rounded inputs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.built_kernels import BuiltKernels, open_entry
from support.golden import GoldenCase, golden_cases

import natc
from natc.checks.guarded import call_forward, check_forward
from natc.checks.inputs import Inputs, make_inputs
from natc.compiler.build import build_library
from natc.host.detect import detect_host_cpu
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec
from natc.targets import LLVM_ARCHS, Target

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

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


def inputs_of(spec: KernelSpec, leading: tuple[int, int, int, int], seed: int = 0) -> Inputs:
    """Return inputs for [batch, height, width, heads]."""
    return make_inputs(
        (*leading, spec.head_dim),
        kernel_size=spec.kernel_size if spec.rpb else None,
        dtype=getattr(torch, spec.dtype),
        seed=seed,
    )


def check(
    built: BuiltKernels,
    spec: KernelSpec,
    leading: tuple[int, int, int, int],
    dilation: tuple[int, int],
    *,
    scale: float | None = None,
    seed: int = 0,
) -> None:
    """Check both entries, called directly and through natc.na2d."""
    inputs = inputs_of(spec, leading, seed)
    used = spec.head_dim**-0.5 if scale is None else scale
    (output,) = call_forward(built.function(spec), inputs, scale=used, dilation=dilation)
    both = call_forward(
        built.function(spec, "forward_lse"), inputs, scale=used, dilation=dilation, with_lse=True
    )
    check_forward(both, inputs, spec.kernel_size, scale=used, dilation=dilation)
    check_forward([output], inputs, spec.kernel_size, scale=used, dilation=dilation)
    options = {"dilation": dilation, "scale": scale, "rpb": inputs.rpb}
    attended = natc.na2d(*inputs[:3], spec.kernel_size, **options)
    found_both = natc.na2d(*inputs[:3], spec.kernel_size, **options, return_lse=True)
    for actual, expected in zip((output, *both), (attended, *found_both), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_kind_of_map(built: BuiltKernels, spec: KernelSpec) -> None:
    taps_h, taps_w = spec.kernel_size
    check(built, spec, (1, 1, 1, 1), (1, 1))
    check(built, spec, (3, taps_h, taps_w, 3), (1, 1))  # the window is the map
    check(built, spec, (1, taps_h - 1, taps_w + 3, 2), (1, 1))  # smaller on one axis
    check(built, spec, (2, 2 * taps_h + 1, taps_w + 1, 3), (2, 1))
    check(built, spec, (1, 17, 5, 5), (3, 2))  # dilation divides neither axis
    check(built, spec, (1, 1, 19, 1), (7, 4))
    check(built, spec, (1, 6, 7, 2), (11, 100))  # every query alone in its group
    check(built, spec, (1, 9, 8, 1), (1, 2), scale=-1.5)
    check(built, spec, (2, 4, 9, 1), (1, 1), scale=0.0)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=st.sampled_from(SPECS),
    batch_heads=st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1), (1, 4)]),
    height=st.integers(1, 18),
    width=st.integers(1, 18),
    dilation=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    scale=st.sampled_from([None, 0.02, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_random_shapes(
    built: BuiltKernels,
    spec: KernelSpec,
    batch_heads: tuple[int, int],
    height: int,
    width: int,
    dilation: tuple[int, int],
    scale: float | None,
    seed: int,
) -> None:
    batch, heads = batch_heads
    check(built, spec, (batch, height, width, heads), dilation, scale=scale, seed=seed)


@pytest.mark.parametrize("spec", [SELF_ATTENTION, WITH_RPB], ids=str)
@pytest.mark.parametrize("leading", [(2, 7, 7, 3), (1, 6, 3, 2), (1, 1, 7, 1)], ids=str)
def test_a_window_of_the_whole_map_is_torchs_self_attention(
    built: BuiltKernels, spec: KernelSpec, leading: tuple[int, int, int, int]
) -> None:
    built.manifest(spec)
    _, height, width, heads = leading
    inputs = inputs_of(spec, leading)
    query, key, value = (t.double().flatten(1, 2).transpose(1, 2) for t in inputs[:3])
    bias = None
    if inputs.rpb is not None:
        row, column = torch.arange(height), torch.arange(width)
        down = (row[None, :] - row[:, None] + 6)[:, None, :, None]
        across = (column[None, :] - column[:, None] + 6)[None, :, None, :]
        bias = inputs.rpb.double()[:, down, across].reshape(heads, height * width, -1)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    expected = expected.transpose(1, 2).unflatten(1, (height, width))
    output = natc.na2d(*inputs[:3], 7, rpb=inputs.rpb)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-6)


def in_scope(case: GoldenCase) -> bool:
    params = case.params
    return (
        case.kind in ("fused", "unfused")
        and params["ndim"] == 2
        and set(params.get("stride", [1])) == {1}
        and not any(params["is_causal"])
        and params["num_additional"] == 0
        and params.get("heads_kv", params["heads"]) == params["heads"]
        and params["head_dim_v"] == params["head_dim"]
    )


GOLDEN_CASES = [case for case in golden_cases(GOLDEN) if in_scope(case)]


def test_vectors_of_both_interfaces_are_tested() -> None:
    assert {case.kind for case in GOLDEN_CASES} == {"fused", "unfused"}
    assert {case.params["has_rpb"] for case in GOLDEN_CASES} == {False, True}
    assert any(max(case.params["dilation"]) > 1 for case in GOLDEN_CASES)


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda case: case.name)
def test_kernels_match_released_versions(built: BuiltKernels, case: GoldenCase) -> None:
    params = case.params
    stored = case.arrays(torch.float32)
    if case.kind == "unfused":  # heads before the map
        stored |= {name: stored[name].movedim(1, 3) for name in ("q", "k", "v", "out")}
        stored["logsumexp"] = stored["logsumexp"].movedim(1, 3)
    kernel_size = tuple(params["kernel_size"])
    built.manifest(KernelSpec(2, kernel_size, params["head_dim"], "float32", params["has_rpb"]))
    output, lse = natc.na2d(
        *(stored[name] for name in "qkv"),
        kernel_size,
        dilation=params["dilation"],
        scale=params["scale"],
        rpb=stored.get("rpb"),
        return_lse=True,
    )
    torch.testing.assert_close(output, stored["out"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(lse, stored["logsumexp"], rtol=1e-5, atol=2e-6)


def spoil_query(x: Inputs, value: float) -> None:
    x.query[0, 2, 3, 1, 4] = value


def spoil_key(x: Inputs, value: float) -> None:
    x.key[0, 2, 3, 1, 4] = value


def spoil_value(x: Inputs, value: float) -> None:
    x.value[0, 2, 3, 1, 4] = value


def spoil_bias(x: Inputs, value: float) -> None:
    assert x.rpb is not None
    x.rpb[1, 6, 7] = value


def spoil_all_bias(x: Inputs, value: float) -> None:
    assert x.rpb is not None
    x.rpb[1] = value


def scale_logits(x: Inputs, value: float) -> None:
    x.query.mul_(value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e4, -1e4], ids=str)
@pytest.mark.parametrize(
    "spoil",
    [spoil_query, spoil_key, spoil_value, spoil_bias, spoil_all_bias, scale_logits],
    ids=lambda function: function.__name__,
)
def test_extreme_numbers_pass_through_as_in_torch(
    built: BuiltKernels, dtype: str, value: float, spoil: object
) -> None:
    spec = KernelSpec(2, (7, 7), 32, dtype, True)
    built.manifest(spec)
    inputs = inputs_of(spec, (1, 9, 8, 2))
    assert callable(spoil)
    spoil(inputs, value)
    output, lse = natc.na2d(*inputs[:3], 7, rpb=inputs.rpb, return_lse=True)
    expected, expected_lse = neighborhood_attention(
        *inputs[:3], 7, rpb=inputs.rpb, return_lse=True
    )
    # Finite where torch is, infinite where it is, NaN where it is, and nowhere else. Logits of
    # 1e4 and more are exact to 1e-3 in float32, and so are the weights.
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
    manifest = build_library(spec, target, tmp_path, untuned=True)
    inputs = inputs_of(spec, (2, 9, 8, 3))
    results = call_forward(
        open_entry(manifest, "forward_lse"), inputs, scale=0.3, dilation=(2, 1), with_lse=True
    )
    check_forward(results, inputs, spec.kernel_size, scale=0.3, dilation=(2, 1))
