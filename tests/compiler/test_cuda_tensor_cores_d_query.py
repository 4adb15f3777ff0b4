"""The gradient of the query on tensor cores, its CUDA source executed on the CPU."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.special_numbers import same
from support.tensor_core_kernels import (
    CALLS,
    GPU,
    WHERE,
    Kernels,
    assert_refused,
    assert_served_without_strides,
    assert_serves,
    assert_without_choice,
    call_by_chance,
    drawn,
    exact,
    spoilt,
)
from torch import Tensor

from natc.checks.guarded import call_guarded, scalars
from natc.checks.inputs import Inputs
from natc.checks.operations import Call, check_operations
from natc.checks.tolerance import RELATIVE_TOLERANCE
from natc.compiler.space import space_for
from natc.spec import KernelSpec

OPERATION = ("d_query",)


# Rows of keys one by one, in parts of which the last is shorter, and at once; odd numbers of
# products; channels in blocks of 64, 32 and 16.
SMALL = "na2d_k3_d16_float16_rpb"
WIDE = "na2d_k13_d16_float16_rpb"
SPECS: dict[str, dict[str, int] | None] = {
    SMALL: None,
    "na2d_k7_d32_float16_rpb": None,
    WIDE: None,
    "na2d_k3x5_d32_float16": {"tensor_cores": 1, "rows": 4},
    "na2d_k10x4_d48v32_bfloat16": {"tensor_cores": 1, "rows": 4, "warps_0": 2, "warps_1": 2},
    "na2d_k2x12_d16v48_bfloat16_rpb": {"tensor_cores": 1, "rows": 1, "warps_1": 4},
    "na1d_k23_d32_bfloat16_rpb": {"tensor_cores": 1, "warps_1": 1},
    "na1d_k4_d112v64_float16": None,
    "na3d_k2x3x4_d16_float16_rpb": {"tensor_cores": 1, "rows": 2},
    "na3d_k1x3x1_d16_bfloat16_rpb": None,
}


@pytest.mark.parametrize("name", SPECS)
def test_gradients(kernels: Kernels, name: str) -> None:
    spec, library = KernelSpec.parse(name), kernels(name, OPERATION, SPECS[name])
    for call in CALLS[spec.rank]:
        check_operations(library.__getitem__, spec, call, OPERATION)


@pytest.mark.parametrize("name", [SMALL, "na1d_k23_d32_bfloat16_rpb"])
def test_calls_by_chance(kernels: Kernels, name: str) -> None:
    spec, chance = KernelSpec.parse(name), random.Random(name)
    library = kernels(name, OPERATION, SPECS[name])
    for seed in range(8):
        call = call_by_chance(chance, spec.rank)
        check_operations(library.__getitem__, spec, call, OPERATION, seed=seed)


def test_two_runs_give_the_same_bits(kernels: Kernels) -> None:
    """In whichever order threads run."""
    spec, library = KernelSpec.parse(SMALL), kernels(SMALL, OPERATION)
    check_operations(library.in_orders, spec, Call((9, 21), dilation=(2, 1)), OPERATION)


# Which kernel is launched


def test_tensor_cores_serve_calls_without_strides(kernels: Kernels) -> None:
    assert_served_without_strides(kernels, OPERATION)


def test_tensor_cores_come_first_where_nothing_is_tuned_and_both_are_searched() -> None:
    spec = KernelSpec.parse("na2d_k7_d32_float16_rpb")
    assert space_for(GPU, "d_query", spec).structure(spec, GPU)["tensor_cores"] == (1, 0)
    cases: list[tuple[dict[str, int], bool]] = [
        ({}, True),
        ({"sums": 32}, False),  # of before there was a choice
        ({"sums": 64, "tensor_cores": 1}, True),
        ({"tensor_cores": 0}, False),
    ]
    assert_serves(spec.name, "d_query", cases)


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
    spec = KernelSpec.parse(name)
    assert_without_choice(spec.name, "d_query", "cuda_gather")


def test_decisions_are_checked() -> None:
    cases: list[tuple[dict[str, int], str]] = [
        ({"tensor_cores": 2}, "tensor_cores is 2; space cuda_gather allows 0, 1"),
        ({"tensor_cores": 1, "rows": 3}, "rows is 3; space cuda_gather allows 2, 1, 4"),
        ({"tensor_cores": 1, "sums": 32}, "sums is 32; space cuda_gather allows 64"),
        ({"tensor_cores": 0, "rows": 2}, "rows is not of space cuda_gather"),
        ({"tensor_cores": 1, "threads": 64}, "threads is not of space cuda_gather"),
    ]
    assert_refused("na2d_k7_d32_float16", "d_query", cases)


# NaN and infinities, inside of windows and beside them


SPOILT = [*spoilt("query", "key", "value", "d_output"), ("key", -math.inf)]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("tensor, value", SPOILT, ids=str)
def test_spoilt_inputs(kernels: Kernels, tensor: str, value: float, where: str) -> None:
    """A number that is not finite is seen by the queries that attend to it, and no others."""
    spec = KernelSpec.parse(SMALL)
    inputs, d_output = drawn(spec, (1, 9, 10, 1))
    flat = (d_output if tensor == "d_output" else getattr(inputs, tensor)).view(-1)
    flat[flat.numel() // 2 + 1] = value
    compare(kernels, SMALL, inputs, d_output, WHERE[where])


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("na1d_k23_d32_bfloat16_rpb", (33,)),
        ("na2d_k2x12_d16v48_bfloat16_rpb", (5, 27)),
        ("na3d_k2x3x4_d16_float16_rpb", (4, 5, 11)),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_spoilt_keys_of_other_halos(
    kernels: Kernels, name: str, sizes: tuple[int, ...], value: float
) -> None:
    """One axis, odd numbers of products, three axes."""
    spec = KernelSpec.parse(name)
    inputs, d_output = drawn(spec, (1, *sizes, 1))
    inputs.key.view(-1)[inputs.key.numel() // 2 + 1] = value
    compare(kernels, name, inputs, d_output, {})


def test_every_key_of_a_row_is_infinite(kernels: Kernels) -> None:
    """Tiles of which some queries see only finite keys, and others infinities of both signs."""
    spec = KernelSpec.parse(SMALL)
    inputs, d_output = drawn(spec, (1, 9, 18, 2))
    inputs.key[:, 4, ::2, :, 3] = math.inf
    inputs.key[:, 4, 1::2, :, 3] = -math.inf
    inputs.key[:, 6, :, :, 8] = math.nan
    compare(kernels, SMALL, inputs, d_output, {})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
def test_windows_of_nothing_else(kernels: Kernels, value: float) -> None:
    """Whose logsumexp is not finite."""
    spec = KernelSpec.parse(SMALL)
    inputs, d_output = drawn(spec, (1, 6, 11, 2))
    assert inputs.rpb is not None
    inputs.rpb[1] = value
    compare(kernels, SMALL, inputs, d_output, {})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("which", ["lse", "delta"])
def test_logsumexp_and_delta_that_are_not_finite(
    kernels: Kernels, which: str, value: float
) -> None:
    """Of one query of a tile: no other's gradient changes, and its own is not finite."""
    spec = KernelSpec.parse(SMALL)
    inputs, d_output = drawn(spec, (1, 6, 11, 1))
    numbers = numbers_of(spec, inputs, d_output, {})
    plain = call(kernels, SMALL, inputs, d_output, numbers, {})
    numbers[which][0, 3, 5, 0] = value
    found = call(kernels, SMALL, inputs, d_output, numbers, {})
    its = torch.zeros(plain.shape[:-1], dtype=torch.bool)
    its[0, 3, 5, 0] = True
    assert torch.equal(found[~its], plain[~its])
    # exp(logit - lse) is clamped to 1, as that of a logit that is too large in its last bit.
    assert bool(found[its].isfinite().all()) == (which == "lse" and value == -math.inf)


# Numbers that are large or small


@pytest.mark.parametrize("scale", [1.0, -2.5, 0.0])
def test_scores_that_are_large(kernels: Kernels, scale: float) -> None:
    """Queries and keys of up to a hundred: a weight of nearly 1 and others of 0."""
    spec = KernelSpec.parse(SMALL)
    inputs, d_output = drawn(spec, (1, 6, 11, 1))
    inputs.query.mul_(30.0)
    inputs.key.mul_(30.0)
    compare(kernels, SMALL, inputs, d_output, {}, scale=scale)


def test_logits_made_anew_that_exceed_the_logsumexp(kernels: Kernels) -> None:
    """By the last bits of huge numbers, whose exponential would be infinite."""
    name = "na1d_k23_d32_bfloat16_rpb"
    inputs, d_output = drawn(KernelSpec.parse(name), (1, 1, 1))
    assert inputs.rpb is not None
    inputs.query.fill_(2.0**13)
    inputs.key.fill_(2.0**13)
    inputs.rpb.zero_()
    numbers = {"lse": torch.full((1, 1, 1), 2.0**31 - 512), "delta": torch.zeros(1, 1, 1)}
    found = call(kernels, name, inputs, d_output, numbers, {}, scale=1.0)
    weight = (d_output.double() * inputs.value.double()).sum()
    same(found, (weight * inputs.key.double()).reshape(found.shape), 2e-2)


@pytest.mark.parametrize(
    "size, value, scale",
    [(2.0**-20, 1.0, 2.0**12), (2.0**-10, 1.0, 1.0), (2.0**11, 64.0, 2.0**-12)],
)
@pytest.mark.parametrize("name", [SMALL, "na2d_k3x5_d32_float16"])
def test_gradients_that_float16_cannot_hold_on_the_way(
    kernels: Kernels, name: str, size: float, value: float, scale: float
) -> None:
    """Gradients of logits are rounded to float16; those of small or large losses still fit.

    With the scale chosen here, the gradient of the query fits as well.
    """
    inputs, d_output = drawn(KernelSpec.parse(name), (1, 6, 11, 1))
    inputs.query.mul_(0.25 / scale)
    inputs.value.mul_(value)
    compare(kernels, name, inputs, d_output * size, {}, scale=scale, relative=True)


def numbers_of(
    spec: KernelSpec, inputs: Inputs, d_output: Tensor, options: Mapping[str, Any], **kw: float
) -> dict[str, Tensor]:
    """Return the exact gradient, and what the kernel is given of the forward: lse and delta."""
    found = exact(spec, inputs, options, scale=kw.get("scale", 0.25), d_output=d_output)
    delta = (d_output.double() * found["output"]).sum(-1)
    return {"d_query": found["d_query"], "lse": found["lse"].float(), "delta": delta.float()}


def call(
    kernels: Kernels,
    name: str,
    inputs: Inputs,
    d_output: Tensor,
    numbers: Mapping[str, Tensor],
    options: Mapping[str, Any],
    *,
    scale: float = 0.25,
) -> Tensor:
    """Return the gradient that a kernel of `SPECS` computes."""
    function = kernels(name, OPERATION, SPECS[name])["d_query"]
    given = (*inputs, d_output, numbers["lse"], numbers["delta"])
    result = (tuple(inputs.query.shape), inputs.query.dtype)
    tail = scalars(inputs, scale, **options)
    (found,) = call_guarded(function, "d_query", given, [result], tail)
    return found


def compare(
    kernels: Kernels,
    name: str,
    inputs: Inputs,
    d_output: Tensor,
    options: Mapping[str, tuple[Any, ...]],
    *,
    scale: float = 0.25,
    relative: bool = False,
) -> None:
    """Compare a gradient with brute force. relative: to itself, however small it is."""
    numbers = numbers_of(KernelSpec.parse(name), inputs, d_output, options, scale=scale)
    found = call(kernels, name, inputs, d_output, numbers, options, scale=scale)
    expected, tolerance = numbers["d_query"], 2 * RELATIVE_TOLERANCE[inputs.query.dtype]
    if relative:
        largest = expected.abs().max()
        assert 2.0**-10 < largest < 6e4
        found, expected = (found.double() / largest).float(), expected / largest
    same(found, expected, tolerance)
