"""The gradient of the bias on tensor cores, its CUDA source executed on the CPU."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.special_numbers import same
from support.tensor_core_kernels import (
    CALLS,
    GPU,
    Kernels,
    assert_refused,
    assert_served_without_strides,
    assert_serves,
    drawn,
    exact,
)

from natc.checks.guarded import call_guarded, scalars
from natc.checks.operations import Call, check_operations
from natc.compiler.build.lower import scheduled
from natc.spec import KernelSpec

OPERATION = ("d_rpb",)


# Rows of keys one by one and two at once; odd numbers of products; more offsets on the last axis
# than a warp has lanes; one axis, on which the halves of a tile lie side by side.
SMALL = "na2d_k3_d16_float16_rpb"
LONG = "na1d_k23_d32_bfloat16_rpb"
SPECS: dict[str, dict[str, int] | None] = {
    SMALL: None,
    "na2d_k13_d16_float16_rpb": {"tensor_cores": 1, "rows": 2, "warps_1": 2},
    "na2d_k3x20_d16v48_bfloat16_rpb": None,
    LONG: None,
    "na1d_k4_d112v64_float16_rpb": {"tensor_cores": 1, "warps_1": 1},
    "na3d_k2x3x4_d16_float16_rpb": None,
    "na3d_k1x3x1_d16_bfloat16_rpb": None,
}


@pytest.mark.parametrize("name", SPECS)
def test_gradients(kernels: Kernels, name: str) -> None:
    spec, library = KernelSpec.parse(name), kernels(name, OPERATION, SPECS[name])
    for call in CALLS[spec.rank]:
        check_operations(library.__getitem__, spec, call, OPERATION)


@pytest.mark.parametrize("chunks", [1, 2, 1000])
@pytest.mark.parametrize("name", [SMALL, LONG])
def test_chunks(kernels: Kernels, name: str, chunks: int) -> None:
    """One for all, and more than there are tiles: the last are 0."""
    spec, library = KernelSpec.parse(name), kernels(name, OPERATION)
    call = replace(CALLS[spec.rank][1], chunks=chunks)
    check_operations(library.__getitem__, spec, call, OPERATION)


def test_two_runs_give_the_same_bits(kernels: Kernels) -> None:
    """In whichever order threads run."""
    for name, sizes in ((SMALL, (9, 21)), (LONG, (40,))):
        spec, library = KernelSpec.parse(name), kernels(name, OPERATION)
        check_operations(library.in_orders, spec, Call(sizes), OPERATION)


def test_tensor_cores_serve_calls_without_strides(kernels: Kernels) -> None:
    assert_served_without_strides(kernels, OPERATION, SMALL)


def test_tensor_cores_come_first_where_nothing_is_tuned() -> None:
    name = "na2d_k7_d32_float16_rpb"
    cases: list[tuple[dict[str, int], bool]] = [
        ({}, True),
        ({"site_bytes": 0}, False),  # of before there was a choice
        ({"tensor_cores": 1, "rows": 2}, True),
    ]
    assert_serves(name, "d_rpb", cases)
    few = "rows is 4; space cuda_gather allows 1, 2"
    assert_refused(name, "d_rpb", [({"tensor_cores": 1, "rows": 4}, few)])
    other = KernelSpec.parse("na2d_k7_d32_float32_rpb")
    assert "natc_mma" not in scheduled(other, GPU, {}, operation="d_rpb").script()


SPOILT = [
    ("", 0.0),
    *(
        (name, value)
        for name in ("query", "key", "value", "rpb")
        for value in (math.nan, math.inf)
    ),
    ("rpb", -math.inf),
    ("d_output", math.nan),
]


@pytest.mark.parametrize("tensor, value", SPOILT, ids=str)
@pytest.mark.parametrize("name, sizes", [(SMALL, (9, 10)), (LONG, (33,))], ids=str)
def test_spoilt_inputs(
    kernels: Kernels, name: str, sizes: tuple[int, ...], tensor: str, value: float
) -> None:
    """A number that is not finite is seen at the offsets of its pairs, and at no others.

    These are exact in float32: nothing is rounded to the kernel's dtype on the way.
    """
    spec = KernelSpec.parse(name)
    inputs, d_output = drawn(spec, (1, *sizes, 2))
    assert inputs.rpb is not None
    tensors: dict[str, Any] = {**inputs._asdict(), "d_output": d_output}
    if tensor:
        # Of one head, in a corner of the map, so that most offsets are not concerned.
        flat = tensors[tensor][0].view(-1) if tensor == "rpb" else tensors[tensor].view(-1)
        flat[1] = value
    expected = exact(spec, inputs, {}, scale=0.25, d_output=d_output)
    delta = (d_output.double() * expected["output"]).sum(-1).float()
    given = (*inputs, d_output, expected["lse"].float(), delta)
    result = ((3, *inputs.rpb.shape), torch.float32)
    function = kernels(name, OPERATION)["d_rpb"]
    (found,) = call_guarded(function, "d_rpb", given, [result], scalars(inputs, 0.25))
    finite = expected["d_rpb"].isfinite().sum().item() / inputs.rpb.numel()
    assert finite == 1.0 if not tensor else finite > 0.2
    same(found.double().sum(0), expected["d_rpb"], 2e-5)
