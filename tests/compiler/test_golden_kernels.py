"""Kernels through natc's public functions against vectors of released NATTEN: every result.

Forward, logsumexp and each gradient by its name. Every case in float32; in the other dtypes some
that have all options among them. A checkout with the whole set tests it all, see support.golden.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.built_kernels import BuiltKernels
from support.golden import GoldenCase, every_golden_case
from torch import Tensor

import natc
from natc import functional
from natc.checks.tolerance import check_close
from natc.spec import KernelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {case.name: case for case in every_golden_case(Path(__file__).parents[2])}
Tensors = dict[str, Tensor]

# Copied beside the tests, so that they are there wherever the tests are.
SOME_FUSED = (
    "f0217_1d_k5_kvh2_22_b1h4_hd16",
    "f0217_1d_k7_s4_d3_c1_41_b1h1_hd32",
    "f0217_1d_k7_add5_21_b1h2_hd16",
    "f0217_2d_k3x4_d2x3_c11_13x14_b1h1_hd16",
    "f0217_2d_k7x5_s3x1_7x8_b1h2_hd16",
    "f0217_3d_k2x4x3_s1x4x2_c101_6x6x5_b1h1_hd8",
    "u0146_2d_k7_d1_7x7_b1h2_hd32",
)
SOME_OPERATORS = (
    "u0146_op_qkrpb_1d_k7_d2_L19",
    "u0146_op_av_1d_k7_d2_L19",
    "u0174_op_qk_2d_k3x5_d2x1_9x8",
    "u0174_op_av_2d_k3x5_d2x1_9x8",
    "u0174_op_qk_3d_k3_d1x2x1_5x7x4",
)
OTHER_DTYPES = (torch.float64, torch.float16, torch.bfloat16)


def parameters(kinds: tuple[str, ...], some: tuple[str, ...]) -> Any:
    """Return every case of some kinds in float32, and some in the other dtypes."""
    every = [(case, torch.float32) for case in CASES.values() if case.kind in kinds]
    every += [(CASES[name], dtype) for dtype in OTHER_DTYPES for name in some]
    ids = [f"{str(dtype).removeprefix('torch.')}-{case.name}" for case, dtype in every]
    return pytest.mark.parametrize("case, dtype", every, ids=ids)


def test_golden_cases_have_every_option() -> None:
    """In a checkout without the whole set, too."""
    every = [case.params for case in CASES.values()]
    for rank in (1, 2, 3):
        assert {case.kind for case in CASES.values() if case.params["ndim"] == rank} >= {
            "fused",
            "unfused",
            "unfused_qk",
        }
        here = [params for params in every if params["ndim"] == rank]
        assert any(max(params["dilation"]) > 1 for params in here)
        assert any(max(params.get("stride", [1])) > 1 for params in here)
        assert any(any(params["is_causal"]) for params in here)
        assert any(params["has_rpb"] for params in here)
        assert any(params.get("num_additional") for params in here)
        assert any(size % 2 == 0 for params in here for size in params["kernel_size"])
    assert any(params.get("heads_kv") not in (None, params["heads"]) for params in every)


@parameters(("fused", "unfused"), SOME_FUSED)
def test_golden_fused(built: BuiltKernels, case: GoldenCase, dtype: torch.dtype) -> None:
    spec = spec_of(case, dtype, rpb=case.params["has_rpb"])
    built.need_attention(spec)
    stored, inputs, d_output = prepare(case, dtype, heads_last=True)
    output, lse = natc.neighborhood_attention(
        *(inputs[name] for name in "qkv"),
        **case.options,
        scale=case.params["scale"],
        rpb=inputs.get("rpb"),
        additional_keys=inputs.get("additional_k"),
        additional_values=inputs.get("additional_v"),
        return_lse=True,
    )
    results = {"out": output, "logsumexp": lse} | gradients(output, inputs, d_output)
    compare(results, stored, inputs, dtype, leave_out={"logits"})


# The whole of an unfused attention rounds its weights; in 16 bits only the operators are exact.
@parameters(("unfused",), ())
def test_golden_unfused(built: BuiltKernels, case: GoldenCase, dtype: torch.dtype) -> None:
    built.need_operators(spec_of(case, dtype, rpb=case.params["has_rpb"]))
    stored, inputs, d_output = prepare(case, dtype, heads_last=False)
    qk, av = operators(case)
    logits = qk(
        inputs["q"] * case.params["scale"],
        inputs["k"],
        **case.options,
        rpb=inputs.get("rpb"),
        additional_keys=inputs.get("additional_k"),
    )
    output = av(
        logits.softmax(-1),
        inputs["v"],
        **case.options,
        additional_values=inputs.get("additional_v"),
    )
    results = {"out": output, "logits": logits, "logsumexp": logits.logsumexp(-1)}
    compare(results | gradients(output, inputs, d_output), stored, inputs, dtype)


@parameters(("unfused_qk", "unfused_av"), SOME_OPERATORS)
def test_golden_operators(built: BuiltKernels, case: GoldenCase, dtype: torch.dtype) -> None:
    built.need_operators(spec_of(case, dtype, rpb=case.params["has_rpb"]))
    stored, inputs, upstream = prepare(case, dtype, heads_last=False)
    qk, av = operators(case)
    if case.kind == "unfused_qk":
        results = {"logits": qk(inputs["q"], inputs["k"], **case.options, rpb=inputs.get("rpb"))}
    else:
        results = {"out": av(inputs["attn"], inputs["v"], **case.options)}
    (result,) = results.values()
    compare(results | gradients(result, inputs, upstream), stored, inputs, dtype)


WITH_TOKENS = [case for case in CASES.values() if case.params.get("num_additional")]


@pytest.mark.parametrize("case", WITH_TOKENS, ids=lambda case: case.name)
def test_golden_additional_tokens_by_merging(built: BuiltKernels, case: GoldenCase) -> None:
    """Attention to additional tokens is computed by itself and merged with the windows'."""
    dtype = torch.float32
    spec = spec_of(case, dtype, rpb=case.params["has_rpb"])
    built.need_attention(spec)
    stored, inputs, d_output = prepare(case, dtype, heads_last=True)
    scale = case.params["scale"]
    of_windows = natc.neighborhood_attention(
        *(inputs[name] for name in "qkv"),
        **case.options,
        scale=scale,
        rpb=inputs.get("rpb"),
        return_lse=True,
    )
    logits = torch.einsum("b...hd,bthd->b...ht", inputs["q"] * scale, inputs["additional_k"])
    of_tokens = (
        torch.einsum("b...ht,bthd->b...hd", logits.softmax(-1), inputs["additional_v"]),
        logits.logsumexp(-1),
    )
    output, lse = natc.merge_attentions(*zip(of_windows, of_tokens))
    results = {"out": output, "logsumexp": lse} | gradients(output, inputs, d_output)
    compare(results, stored, inputs, dtype, leave_out={"logits"})


def spec_of(case: GoldenCase, dtype: torch.dtype, *, rpb: bool) -> KernelSpec:
    params = case.params
    return KernelSpec(
        params["ndim"],
        tuple(params["kernel_size"]),
        params["head_dim"],
        str(dtype).removeprefix("torch."),
        rpb,
        params.get("head_dim_v"),
    )


def operators(case: GoldenCase) -> tuple[Any, Any]:
    rank = case.params["ndim"]
    return getattr(functional, f"na{rank}d_qk"), getattr(functional, f"na{rank}d_av")


def prepare(
    case: GoldenCase, dtype: torch.dtype, *, heads_last: bool
) -> tuple[Tensors, Tensors, Tensor]:
    """Return the expected results, the inputs in a dtype, and the upstream gradient."""
    stored = case.arrays(torch.float64)
    if heads_last and not case.heads_last:
        # The logsumexp has no channels, and a bias no batch.
        moved = {name: x.movedim(1, -2) for name, x in stored.items() if "rpb" not in name}
        moved["logsumexp"] = stored["logsumexp"].movedim(1, -1)
        stored |= moved
    # Values that bfloat16 can represent: nothing is rounded but what float16 holds as subnormal.
    inputs_of_fused = {"q", "k", "v", "rpb", "additional_k", "additional_v"}
    upstream = "d_logits" if case.kind == "unfused_qk" else "d_out"
    if case.kind == "unfused_av":
        inputs_of_fused.add("attn")
    inputs = {
        name: x.to(torch.promote_types(dtype, torch.float32) if name == "rpb" else dtype)
        for name, x in stored.items()
        if name in inputs_of_fused
    }
    for name, x in inputs.items():
        torch.testing.assert_close(x.double(), stored[name], rtol=0, atol=1e-7)
        x.requires_grad_()
    expected = {
        name: x for name, x in stored.items() if name not in inputs_of_fused and name != upstream
    }
    return expected, inputs, stored[upstream].to(dtype)


def gradients(result: Tensor, inputs: Tensors, upstream: Tensor) -> Tensors:
    grads = torch.autograd.grad(result, list(inputs.values()), upstream)
    return {f"d_{name}": gradient for name, gradient in zip(inputs, grads, strict=True)}


def compare(
    results: Tensors,
    stored: Mapping[str, Tensor],
    inputs: Tensors,
    dtype: torch.dtype,
    *,
    leave_out: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Compare every array that a file holds, and every result that the call gave."""
    assert set(stored) - leave_out == set(results)
    assert {f"d_{name}" for name in inputs} <= set(results)
    for name, result in results.items():
        if name != "logsumexp":
            assert result.dtype == (inputs["rpb"].dtype if name == "d_rpb" else dtype), name
        # The files are float32 where they do not say otherwise, and so is a 0.21.7 forward.
        as_exact_as = torch.float32 if dtype == torch.float64 else dtype
        errors = check_close(result, stored[name], as_exact_as, name)
        if dtype == torch.float64:
            assert errors.relative < 3e-7, name
