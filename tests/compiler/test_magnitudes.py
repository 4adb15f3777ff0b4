"""Gradients are right wherever the forward is, however large the logits are.

Brute force in float64 says how wrong a result is. A float32 logit of 1e6 may be off by 0.03, and a
probability by as much; then the gradients may be wrong, too, but not more than the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import brute_force, magnitudes
from support.built_kernels import BuiltKernels
from support.calls import Call, call_of, draw_fused
from support.emulator import emulate
from support.guarded_calls import GuardedKernel
from support.special_numbers import same
from torch import Tensor

import natc
from natc.checks.operations import calls, check_operations
from natc.checks.tolerance import RELATIVE_TOLERANCE
from natc.dispatch.fallback import force_reference
from natc.operations import operations_of
from natc.spec import KernelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Tensors = dict[str, Tensor]
Attention = Callable[..., Any]
MAPS = {1: (11,), 2: (6, 5), 3: (3, 2, 4)}
# One for each design space and each way in which dot products are summed.
ON_CPUS = (
    "na2d_k3_d16_float32_rpb",
    "na2d_k3_d16_bfloat16_rpb",
    "na1d_k9_d24_float32_rpb",
    "na2d_k3_d8_float32_rpb",
    "na3d_k2_d3v5_float32_rpb",
    "na2d_k3_d4_float64_rpb",
)
# The first runs on CUDA cores, the others on tensor cores.
EMULATED = (
    "na2d_k3_d8_float32_rpb",
    "na2d_k3_d16_bfloat16_rpb",
    "na1d_k4_d16_float16_rpb",
)
# Kernels of `delta` for tensor cores: many rows and products, three axes, channels in blocks.
DELTAS = (
    "na2d_k7_d32_bfloat16_rpb",
    "na3d_k3x2x4_d16v32_float16",
    "na2d_k2x12_d112_float16",
)
SIZES = [sign * size for size in (1.0, 1e2, 1e4, 1e6, 1e9) for sign in (1, -1)]


def equal_biases(inputs: Tensors, size: float) -> float:
    inputs["query"].zero_()
    inputs["rpb"].fill_(size)
    return 1.0


def large_scores(inputs: Tensors, size: float) -> float:
    return size


def equal_keys(inputs: Tensors, size: float) -> float:
    """Give all keys of an entry the same vector: the scores of a window are equal, and rounded."""
    inputs["key"].copy_(inputs["key"].mean((1, 2), keepdim=True).expand_as(inputs["key"]))
    inputs["rpb"].zero_()
    return size


def large_biases(inputs: Tensors, size: float) -> float:
    inputs["rpb"].mul_(size)
    return 1.0


def scores_beside_a_large_bias(inputs: Tensors, size: float) -> float:
    inputs["rpb"].fill_(size)
    return 1.0


CASES = (equal_biases, large_scores, equal_keys, large_biases, scores_beside_a_large_bias)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


def small_call(spec: KernelSpec, **options: Any) -> Call:
    return call_of(spec, MAPS[spec.rank], batch=2, heads=2, heads_kv=1, **options)


@each_case
@pytest.mark.parametrize("name", ON_CPUS)
def test_kernels_on_cpus(built: BuiltKernels, name: str, case: Callable[..., float]) -> None:
    spec = KernelSpec.parse(name)
    built.need(spec)
    for options in ({}, {"is_causal": True, "stride": 2, "dilation": 2}):
        check(natc.neighborhood_attention, small_call(spec, **options), case)


@each_case
def test_the_reference(case: Callable[..., float]) -> None:
    with force_reference():
        check(natc.neighborhood_attention, small_call(KernelSpec.parse(ON_CPUS[0])), case)


@pytest.fixture(scope="module", params=EMULATED)
def emulated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[KernelSpec, GuardedKernel]]:
    spec = KernelSpec.parse(request.param)
    operations = ["forward_lse", *operations_of(spec, ("backward",))]
    library = emulate(spec, operations, Path(tmp_path_factory.mktemp("emulated")))
    yield spec, GuardedKernel(lambda operation, _: library[operation])


@each_case
def test_emulated_cuda_kernels(
    emulated: tuple[KernelSpec, GuardedKernel], case: Callable[..., float]
) -> None:
    spec, kernel = emulated
    check(kernel.attention, small_call(spec), case)


@pytest.mark.parametrize("name", DELTAS)
def test_corrections_on_tensor_cores(name: str, tmp_path: Path) -> None:
    spec = KernelSpec.parse(name)
    library = emulate(spec, ["delta"], tmp_path)
    for call in calls(spec.kernel_size):
        check_operations(library.in_orders, spec, call, ["delta"])


def check(compute: Attention, call: Call, case: Callable[..., float]) -> None:
    for size in SIZES:
        inputs, upstream = draw_fused(call)
        with torch.no_grad():
            scale = case(inputs, size)
        results = results_of(compute, call, scale, inputs, upstream)
        tensors = {name: x.detach().double().numpy() for name, x in (inputs | upstream).items()}
        expected = brute_force.attention(**tensors, **call.options, scale=scale)
        terms = magnitudes.attention(**tensors, **call.options, scale=scale)
        # Sums whose terms are beyond the dtype's range, as float16's may be, say nothing.
        most = torch.finfo(call.dtype).max
        errors = {
            name: np.abs(results[name].double().numpy() - exact).max() / (terms[name].max() or 1.0)
            for name, exact in expected.items()
            if name == "lse" or terms[name].max() < most
        }
        limit = max(2 * RELATIVE_TOLERANCE[call.dtype], 4 * errors["output"])
        wrong = {name: error for name, error in errors.items() if not error <= limit}
        assert not wrong, f"size {size}, output off by {errors['output']:.1e}: {wrong}"


def results_of(
    compute: Attention, call: Call, scale: float, inputs: Tensors, upstream: Tensors
) -> Tensors:
    output, lse = compute(**inputs, **call.options, scale=scale, return_lse=True)
    gradients = torch.autograd.grad((output, lse), [*inputs.values()], [*upstream.values()])
    named = {f"d_{name}": x for name, x in zip(inputs, gradients, strict=True)}
    return {"output": output.detach(), "lse": lse.detach(), **named}


# Numbers that are not finite, where the pass over a window computes corrections


@pytest.mark.parametrize("spoilt, value", [
    *((name, value) for name in ("query", "key") for value in (math.nan, math.inf, -math.inf)),
    ("value", math.nan), ("d_output", math.nan), ("d_lse", math.nan),
])  # fmt: skip
@pytest.mark.parametrize("name", [ON_CPUS[0], ON_CPUS[3]])
def test_numbers_that_are_not_finite_beside_every_border(
    built: BuiltKernels, name: str, spoilt: str, value: float
) -> None:
    spec = KernelSpec.parse(name)
    built.need(spec)
    call = small_call(spec)
    rows, columns = ((0, size // 2, size - 1) for size in call.spatial)
    for row in rows:
        for column in columns:
            inputs, upstream = draw_fused(call)
            with torch.no_grad():
                scale = equal_biases(inputs, -1e4)
                (inputs | upstream)[spoilt][1, row, column].flatten()[0] = value
            results = results_of(natc.neighborhood_attention, call, scale, inputs, upstream)
            tensors = {n: x.detach().double().numpy() for n, x in (inputs | upstream).items()}
            with np.errstate(invalid="ignore"):
                expected = brute_force.attention(**tensors, **call.options, scale=scale)
            for result, exact in expected.items():
                tolerance = 2 * RELATIVE_TOLERANCE[call.dtype]
                same(results[result], torch.from_numpy(exact), tolerance, result)
