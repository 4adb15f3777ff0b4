"""The forward on tensor cores, its CUDA source executed on the CPU.

What is executed is the whole function: its host code chooses between the kernel for tensor cores
and that for CUDA cores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from emulator import Emulated, emulate_code
from torch import Tensor

from natc.build import cuda
from natc.build.lower import scheduled
from natc.errors import ScheduleError
from natc.operations import operations_of
from natc.spec import KernelSpec
from natc.targets import Target
from natc.testing import brute_force
from natc.testing.direct import call as call_forward
from natc.testing.every_operation import Call, assert_operations_right
from natc.testing.inputs import Inputs, make_inputs
from natc.testing.tolerance import RELATIVE_TOLERANCE

GPU = Target("cuda", "sm_90")
LSE = ("forward_lse",)
Emulate = Callable[..., Emulated]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Emulate:
    """Return what builds operations of a kernel, each combination once."""
    built: dict[object, Emulated] = {}

    def build(
        name: str,
        operations: Sequence[str] = LSE,
        decisions: Mapping[str, int] | None = None,
        change: Callable[[str], str] = str,
    ) -> Emulated:
        key = name, tuple(operations), tuple((decisions or {}).items()), change
        if key not in built:
            spec, directory = KernelSpec.parse(name), tmp_path_factory.mktemp("emulated")
            code = cuda.generate(spec, GPU, decisions or {}, directory, operations)
            code = dataclasses.replace(code, source=change(code.source))
            names = {entry: cuda.function_name(spec, entry, GPU) for entry in operations}
            built[key] = emulate_code(code, names, directory)
        return built[key]

    return build


CALLS = {
    1: [
        Call((1,)),
        Call((69,), heads=3, heads_kv=1),
        Call((69,), batch=1, heads=1, heads_kv=1, is_causal=(True,)),
        Call((69,), batch=1, heads=1, heads_kv=1, dilation=(5,)),
    ],
    2: [
        Call((7, 7), heads=3, heads_kv=1),
        Call((2, 5), heads=2, heads_kv=1),
        Call((17, 19), batch=1, heads=1, heads_kv=1),
        Call((9, 21), batch=1, heads=2, heads_kv=2, dilation=(4, 2)),
        Call((9, 15), batch=1, heads=2, is_causal=(False, True)),
        Call((13, 9), batch=1, heads=1, heads_kv=1, dilation=(1, 2), is_causal=(True, False)),
    ],
    3: [
        Call((5, 6, 9), batch=1, heads=2, heads_kv=1),
        Call((2, 3, 2), heads=2, heads_kv=1),
        Call((4, 5, 9), batch=1, heads=1, heads_kv=1, is_causal=(True, False, True)),
        Call((4, 7, 9), batch=1, heads=1, heads_kv=1, dilation=(2, 1, 3)),
    ],
}


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
}


@pytest.mark.parametrize("name", SPECS)
def test_forwards(kernels: Emulate, name: str) -> None:
    spec = KernelSpec.parse(name)
    operations = operations_of(spec, ("forward",)) if name == EVERY else LSE
    library = kernels(name, operations, SPECS[name])
    for call in CALLS[spec.rank]:
        assert_operations_right(library.__getitem__, spec, call, operations)


# Which kernel is launched


def broken(source: str) -> str:
    """Make the kernel for tensor cores, and no other, compute something else."""
    assert source.count("natc_exp2(") > 0
    return source.replace("natc_exp2(", "2.0f * natc_exp2(0.5f * ")


def test_tensor_cores_serve_calls_without_strides(kernels: Emulate) -> None:
    spec, library = (
        KernelSpec.parse("na2d_k3_d16_float16"),
        kernels("na2d_k3_d16_float16", change=broken),
    )
    with pytest.raises(AssertionError, match="relative error"):
        assert_operations_right(library.__getitem__, spec, Call((6, 9)), LSE)
    strided = Call((6, 9), stride=(1, 2))
    assert_operations_right(library.__getitem__, spec, strided, LSE)


def test_decisions_of_before_there_was_a_choice_mean_cuda_cores(kernels: Emulate) -> None:
    spec = KernelSpec.parse("na2d_k7_d32_float16_rpb")
    for decisions, serves in (
        ({}, True),
        ({"lanes": 4}, False),
        ({"lanes": 4, "tensor_cores": 1}, True),
        ({"tensor_cores": 0}, False),
    ):
        text = scheduled(spec, GPU, decisions).script()
        assert ("natc_mma_f16" in text) == serves, decisions


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
    assert "natc_mma" not in scheduled(spec, GPU, {}).script()
    with pytest.raises(ScheduleError, match="decision tensor_cores is not of space cuda_"):
        scheduled(spec, GPU, {"tensor_cores": 0})


def test_decisions_are_checked() -> None:
    spec = KernelSpec.parse("na2d_k7_d32_float16")
    for decisions, message in (
        ({"tensor_cores": 2}, "tensor_cores is 2; space cuda_simt allows 0, 1"),
        ({"tensor_cores": 1, "products": 5}, "products is 5; space cuda_simt allows 16, 8"),
        ({"tensor_cores": 1, "lanes": 2}, "lanes is 2; space cuda_simt allows 4"),
        ({"tensor_cores": 0, "products": 8}, "products is not of space cuda_simt"),
        ({"tensor_cores": 1, "tile_h": 8}, "tile_h is not of space cuda_simt"),
    ):
        with pytest.raises(ScheduleError, match=message):
            scheduled(spec, GPU, decisions)


# NaN and infinities, inside of windows and beside them


SPOILT = [
    *((name, value) for name in ("query", "key", "value") for value in (math.nan, math.inf)),
    *(("rpb", value) for value in (math.nan, math.inf, -math.inf)),
    ("key", -math.inf),
]
WHERE: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": (True, True)},
    "dilated": {"dilation": (2, 1)},
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("tensor, value", SPOILT, ids=str)
@pytest.mark.parametrize("name", [EVERY, PARTS], ids=["at once", "in parts"])
def test_spoilt_inputs(kernels: Emulate, name: str, tensor: str, value: float, where: str) -> None:
    """A number that is not finite is seen by the queries that attend to it, and no others."""
    spec = KernelSpec.parse(name)
    inputs = spoilt_inputs(spec, (1, 19, 10, 1))
    flat = getattr(inputs, tensor).view(-1)
    flat[flat.numel() // 2 + 1] = value
    compare(forward_of(kernels, name), spec, inputs, WHERE[where])


@pytest.mark.parametrize("name", ["na1d_k23_d32_bfloat16_rpb", "na3d_k2x3x4_d16_float16_rpb"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_spoilt_values_with_another_number_of_axes(
    kernels: Emulate, name: str, value: float
) -> None:
    spec = KernelSpec.parse(name)
    sizes = {1: (33,), 3: (5, 5, 11)}[spec.rank]
    inputs = spoilt_inputs(spec, (1, *sizes, 1))
    inputs.value.view(-1)[inputs.value.numel() // 2 + 1] = value
    compare(forward_of(kernels, name), spec, inputs, {})


def test_every_value_of_a_row_is_infinite(kernels: Emulate) -> None:
    """Tiles of which some queries see only finite values, and others infinities of both signs."""
    spec = KernelSpec.parse(EVERY)
    inputs = spoilt_inputs(spec, (1, 9, 18, 2))
    inputs.value[:, 4, ::2, :, 3] = math.inf
    inputs.value[:, 4, 1::2, :, 3] = -math.inf
    inputs.value[:, 6, :, :, 8] = -math.inf
    compare(forward_of(kernels, spec.name), spec, inputs, {})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
def test_windows_of_nothing_else(kernels: Emulate, value: float) -> None:
    spec = KernelSpec.parse(EVERY)
    inputs = spoilt_inputs(spec, (1, 6, 11, 2))
    assert inputs.rpb is not None
    inputs.rpb[1] = value
    compare(forward_of(kernels, spec.name), spec, inputs, {})


@pytest.mark.parametrize("scale", [1.0, -2.5, 0.0])
def test_scores_that_are_large(kernels: Emulate, scale: float) -> None:
    """Queries and keys of up to a hundred: a weight of nearly 1 and others of 0."""
    spec = KernelSpec.parse(EVERY)
    inputs = spoilt_inputs(spec, (1, 6, 11, 1))
    inputs.query.mul_(30.0)
    inputs.key.mul_(30.0)
    compare(forward_of(kernels, spec.name), spec, inputs, {}, scale=scale)


def test_scores_that_are_equal_and_beyond_float16(kernels: Emulate) -> None:
    spec = KernelSpec.parse("na1d_k23_d32_bfloat16_rpb")
    inputs = spoilt_inputs(spec, (1, 33, 1))
    assert inputs.rpb is not None
    inputs.query.fill_(1e15)
    inputs.key.fill_(1e15)
    inputs.rpb.zero_()
    compare(forward_of(kernels, spec.name), spec, inputs, {}, scale=1.0)


def forward_of(kernels: Emulate, name: str) -> Callable[..., None]:
    """Return forward_lse of a library that `test_forwards` has, too."""
    spec = KernelSpec.parse(name)
    operations = operations_of(spec, ("forward",)) if name == EVERY else LSE
    return kernels(name, operations, SPECS[name])["forward_lse"]


def spoilt_inputs(spec: KernelSpec, leading: tuple[int, ...]) -> Inputs:
    dtype = getattr(torch, spec.dtype)
    return make_inputs((*leading, spec.head_dim), kernel_size=spec.kernel_size, dtype=dtype)


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
    plain = {"dilation": 1, "stride": 1, "is_causal": False}
    every: dict[str, Any] = {
        name: options.get(name, (value,) * spec.rank) for name, value in plain.items()
    }
    given = {
        name: tensor.double().numpy()
        for name, tensor in zip(Inputs._fields, inputs, strict=True)
        if tensor is not None
    }
    attention: Any = brute_force.attention
    with np.errstate(invalid="ignore", over="ignore"):
        exact = attention(**given, kernel_size=spec.kernel_size, scale=scale, **every)
    tolerance = 2 * RELATIVE_TOLERANCE[inputs.value.dtype]
    output, lse = (torch.from_numpy(np.array(exact[name])) for name in ("output", "lse"))
    same(results[0], output, tolerance)
    # Where a window holds NaN and inf, either is a logarithm of their sum.
    same(results[1].masked_fill(lse.isnan(), math.nan), lse, 1e-5)


def same(found: Tensor, exact: Tensor, tolerance: float) -> None:
    exact = exact.to(found.dtype)
    for kind in ("isnan", "isposinf", "isneginf"):
        here, there = getattr(found, kind)(), getattr(exact, kind)()
        assert torch.equal(here, there), (
            f"{kind} holds of {int(here.sum())} elements, and should of {int(there.sum())}; "
            f"first difference at {(here != there).nonzero()[0].tolist()}"
        )
    finite = exact.isfinite()
    largest = exact[finite].abs().max().item() if bool(finite.any()) else 0.0
    torch.testing.assert_close(
        found[finite], exact[finite], rtol=tolerance, atol=tolerance * max(largest, 1.0)
    )
