"""The forward on tensor cores, its CUDA source executed on the CPU."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.special_numbers import same
from support.tensor_core_kernels import (
    CALLS,
    WHERE,
    Kernels,
    assert_refused,
    assert_served_without_strides,
    assert_serves,
    assert_without_choice,
    exact,
    forwards,
    spoilt,
    spoilt_inputs,
)

from natc.checks.guarded import call_forward
from natc.checks.inputs import Inputs
from natc.checks.operations import check_operations
from natc.checks.tolerance import RELATIVE_TOLERANCE
from natc.compiler.build import cuda
from natc.spec import KernelSpec

LSE = ("forward_lse",)


# Of the first, every function; of the others, one. Rows of keys at once and in parts, of which the
# last is shorter; odd numbers of products; values in blocks of 64, 32 and 16 channels.
EVERY = "na2d_k3_d16_float16_rpb"
PARTS = "na2d_k13_d16_float16_rpb"
SPECS = {
    EVERY: None,
    "na2d_k7_d32_float16_rpb": None,
    PARTS: None,
    "na2d_k10x4_d48v112_bfloat16": {"tensor_cores": 1, "products": 8, "warps_0": 2, "warps_1": 2},
    "na1d_k23_d32_bfloat16_rpb": {"tensor_cores": 1, "warps_1": 1},
    "na3d_k2x3x4_d16_float16_rpb": None,
    "na3d_k1x3x1_d16_bfloat16_rpb": None,
}


@pytest.mark.parametrize("name", SPECS)
def test_forwards(kernels: Kernels, name: str) -> None:
    spec = KernelSpec.parse(name)
    operations = forwards(spec) if name == EVERY else LSE
    library = kernels(name, operations, SPECS[name])
    for call in CALLS[spec.rank]:
        check_operations(library.__getitem__, spec, call, operations)


def test_products_stay_where_all_lanes_are() -> None:
    """CUDA says of other inline code that compilers may move it, under a condition for example."""
    header = (Path(cuda.__file__).parent / "launcher" / "mma.cuh").read_text()
    assert re.findall(r"asm ?(\w*)\(\"mma\.sync\.aligned", header) == ["volatile"] * 2


# Which kernel is launched


def test_tensor_cores_serve_calls_without_strides(kernels: Kernels) -> None:
    assert_served_without_strides(kernels, LSE)


def test_decisions_of_before_there_was_a_choice_mean_cuda_cores(kernels: Kernels) -> None:
    cases: list[tuple[dict[str, int], bool]] = [
        ({}, True),
        ({"lanes": 4}, False),
        ({"lanes": 4, "tensor_cores": 1}, True),
        ({"tensor_cores": 0}, False),
    ]
    assert_serves("na2d_k7_d32_float16_rpb", "forward", cases)


@pytest.mark.parametrize(
    "name",
    [
        "na2d_k7_d32_float32",
        "na2d_k7_d24_float16",
        "na2d_k7_d144_float16",
        "na2d_k3_d32v8_float16",
    ],
)
def test_kernels_without_tensor_cores(name: str) -> None:
    assert_without_choice(name, "forward", "cuda_")


def test_decisions_are_checked() -> None:
    cases: list[tuple[dict[str, int], str]] = [
        ({"tensor_cores": 2}, "tensor_cores is 2; space cuda_simt allows 0, 1"),
        ({"tensor_cores": 1, "products": 5}, "products is 5; space cuda_simt allows 16, 8"),
        ({"tensor_cores": 1, "lanes": 2}, "lanes is 2; space cuda_simt allows 4"),
        ({"tensor_cores": 0, "products": 8}, "products is not of space cuda_simt"),
        ({"tensor_cores": 1, "tile_h": 8}, "tile_h is not of space cuda_simt"),
    ]
    assert_refused("na2d_k7_d32_float16", "forward", cases)


# NaN and infinities, inside of windows and beside them


SPOILT = [*spoilt("query", "key", "value"), ("key", -math.inf)]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("tensor, value", SPOILT, ids=str)
@pytest.mark.parametrize("name", [EVERY, PARTS], ids=["at once", "in parts"])
def test_spoilt_inputs(kernels: Kernels, name: str, tensor: str, value: float, where: str) -> None:
    """A number that is not finite is seen by the queries that attend to it, and no others."""
    spec = KernelSpec.parse(name)
    inputs = spoilt_inputs(spec, (1, 19, 10, 1))
    flat = getattr(inputs, tensor).view(-1)
    flat[flat.numel() // 2 + 1] = value
    compare(forward_of(kernels, name), spec, inputs, WHERE[where])


@pytest.mark.parametrize("name", ["na1d_k23_d32_bfloat16_rpb", "na3d_k2x3x4_d16_float16_rpb"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_spoilt_values_with_another_number_of_axes(
    kernels: Kernels, name: str, value: float
) -> None:
    spec = KernelSpec.parse(name)
    sizes = {1: (33,), 3: (5, 5, 11)}[spec.rank]
    inputs = spoilt_inputs(spec, (1, *sizes, 1))
    inputs.value.view(-1)[inputs.value.numel() // 2 + 1] = value
    compare(forward_of(kernels, name), spec, inputs, {})


def test_every_value_of_a_row_is_infinite(kernels: Kernels) -> None:
    """Tiles of which some queries see only finite values, and others infinities of both signs."""
    spec = KernelSpec.parse(EVERY)
    inputs = spoilt_inputs(spec, (1, 9, 18, 2))
    inputs.value[:, 4, ::2, :, 3] = math.inf
    inputs.value[:, 4, 1::2, :, 3] = -math.inf
    inputs.value[:, 6, :, :, 8] = -math.inf
    compare(forward_of(kernels, spec.name), spec, inputs, {})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
def test_windows_of_nothing_else(kernels: Kernels, value: float) -> None:
    spec = KernelSpec.parse(EVERY)
    inputs = spoilt_inputs(spec, (1, 6, 11, 2))
    assert inputs.rpb is not None
    inputs.rpb[1] = value
    compare(forward_of(kernels, spec.name), spec, inputs, {})


@pytest.mark.parametrize("scale", [1.0, -2.5, 0.0])
def test_scores_that_are_large(kernels: Kernels, scale: float) -> None:
    """Queries and keys of up to a hundred: a weight of nearly 1 and others of 0."""
    spec = KernelSpec.parse(EVERY)
    inputs = spoilt_inputs(spec, (1, 6, 11, 1))
    inputs.query.mul_(30.0)
    inputs.key.mul_(30.0)
    compare(forward_of(kernels, spec.name), spec, inputs, {}, scale=scale)


def test_scores_that_are_equal_and_beyond_float16(kernels: Kernels) -> None:
    spec = KernelSpec.parse("na1d_k23_d32_bfloat16_rpb")
    inputs = spoilt_inputs(spec, (1, 33, 1))
    assert inputs.rpb is not None
    inputs.query.fill_(1e15)
    inputs.key.fill_(1e15)
    inputs.rpb.zero_()
    compare(forward_of(kernels, spec.name), spec, inputs, {}, scale=1.0)


def forward_of(kernels: Kernels, name: str) -> Callable[..., None]:
    """Return forward_lse of a library that `test_forwards` has, too."""
    spec = KernelSpec.parse(name)
    operations = forwards(spec) if name == EVERY else LSE
    return kernels(name, operations, SPECS[name])["forward_lse"]


def compare(
    function: Callable[..., None],
    spec: KernelSpec,
    inputs: Inputs,
    options: Mapping[str, tuple[Any, ...]],
    *,
    scale: float = 0.25,
) -> None:
    """Compare kinds of numbers element by element with brute force, and finite ones by value."""
    chosen: dict[str, Any] = dict(options)
    results = call_forward(function, inputs, scale=scale, with_lse=True, **chosen)
    expected = exact(spec, inputs, options, scale=scale)
    tolerance = 2 * RELATIVE_TOLERANCE[inputs.value.dtype]
    same(results[0], expected["output"], tolerance)
    # Where a window holds NaN and inf, either is a logarithm of their sum.
    lse = expected["lse"]
    same(results[1].masked_fill(lse.isnan(), math.nan), lse, 1e-5)
