"""What the tests of kernels for tensor cores share: building them, calls, and what is exact.

What is executed is the whole function: its host code chooses between the kernel for tensor cores
and that for CUDA cores.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from natc.checks.inputs import Inputs, make_inputs
from natc.checks.operations import Call, check_operations
from natc.compiler.build import cuda
from natc.compiler.build.lower import scheduled
from natc.errors import CheckError, ScheduleError
from natc.operations import operations_of
from natc.spec import KernelSpec
from natc.store.schedules import joined
from natc.targets import Target
from support import brute_force
from support.emulator import Emulated, emulate_code

GPU = Target("cuda", "sm_90")

# Maps that tiles do not divide, borders, windows as large as the map, dilation groups of two
# lengths, causal axes, several heads to one of key and value.
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
# Options of calls in which a number is spoilt.
WHERE: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": (True, True)},
    "dilated": {"dilation": (2, 1)},
}


def spoilt(*names: str) -> list[tuple[str, float]]:
    """Return tensors, the bias and those named, with what a number of theirs may be spoilt to."""
    return [
        *((name, value) for name in names for value in (math.nan, math.inf)),
        *(("rpb", value) for value in (math.nan, math.inf, -math.inf)),
    ]


class Kernels:
    """Operations of kernels, each combination built once."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._factory = tmp_path_factory
        self._built: dict[object, Emulated] = {}

    def __call__(
        self,
        name: str,
        operations: Sequence[str],
        decisions: Mapping[str, int] | None = None,
        change: Callable[[str], str] = str,
    ) -> Emulated:
        """Return operations that have one schedule; change: what to do to the CUDA source."""
        key = name, tuple(operations), tuple((decisions or {}).items()), change
        if key not in self._built:
            spec, directory = KernelSpec.parse(name), self._factory.mktemp("emulated")
            chosen = joined(decisions or {}, operations[0])
            code = cuda.generate(spec, GPU, chosen, directory, operations)
            code = dataclasses.replace(code, source=change(code.source))
            names = {entry: cuda.function_name(spec, entry, GPU) for entry in operations}
            self._built[key] = emulate_code(code, names, directory)
        return self._built[key]


def call_by_chance(chance: random.Random, rank: int) -> Call:
    """Return a call without strides, of maps of up to 20 x 20, or 70 on one axis."""
    sizes = tuple(chance.randint(1, 20 if rank == 2 else 70) for _ in range(rank))
    heads_kv = chance.randint(1, 2)
    return Call(
        sizes,
        batch=chance.randint(1, 2),
        heads=heads_kv * chance.randint(1, 2),
        heads_kv=heads_kv,
        dilation=tuple(chance.randint(1, max(1, size // 2)) for size in sizes),
        is_causal=tuple(chance.random() < 0.3 for _ in sizes),
        scale=chance.choice((0.3, -0.7, 0.0)),
    )


def broken(source: str) -> str:
    """Make the kernel for tensor cores, and no other, compute something else."""
    assert source.count("natc_exp2(") > 0
    return source.replace("natc_exp2(", "2.0f * natc_exp2(0.5f * ")


def assert_served_without_strides(
    kernels: Kernels, operations: Sequence[str], name: str = "na2d_k3_d16_float16"
) -> None:
    """Check that the kernel for tensor cores runs where no axis has a stride, and only there."""
    spec, library = KernelSpec.parse(name), kernels(name, operations, change=broken)
    strided = Call((6, 9), stride=(1, 2))
    for operation in operations:
        with pytest.raises(CheckError, match="relative error"):
            check_operations(library.__getitem__, spec, Call((6, 9)), (operation,))
        check_operations(library.__getitem__, spec, strided, (operation,))


def assert_serves(
    name: str, operation: str, cases: Iterable[tuple[Mapping[str, int], bool]]
) -> None:
    """Check for some decisions whether a kernel's operation has code for tensor cores."""
    for decisions, serves in cases:
        text = scheduled(KernelSpec.parse(name), GPU, decisions, operation=operation).script()
        assert ("natc_mma_f16" in text) == serves, decisions


def assert_without_choice(name: str, operation: str, space: str) -> None:
    """Check that a kernel's operation has no code for tensor cores, and no choice of them."""
    spec = KernelSpec.parse(name)
    assert "natc_mma" not in scheduled(spec, GPU, {}, operation=operation).script()
    with pytest.raises(ScheduleError, match=f"decision tensor_cores is not of space {space}"):
        scheduled(spec, GPU, {"tensor_cores": 0}, operation=operation)


def assert_refused(
    name: str, operation: str, cases: Iterable[tuple[Mapping[str, int], str]]
) -> None:
    """Check what is said of decisions that a kernel's operation does not have."""
    for decisions, message in cases:
        with pytest.raises(ScheduleError, match=message):
            scheduled(KernelSpec.parse(name), GPU, decisions, operation=operation)


def forwards(spec: KernelSpec) -> tuple[str, ...]:
    """Return the names of a kernel's forward operations."""
    return operations_of(spec, ("forward",))


def spoilt_inputs(spec: KernelSpec, leading: tuple[int, ...]) -> Inputs:
    """Return inputs of a kernel: `leading` is batch, map and heads."""
    return make_inputs(
        (*leading, spec.head_dim),
        kernel_size=spec.kernel_size if spec.rpb else None,
        value_dim=spec.value_dim,
        dtype=getattr(torch, spec.dtype),
    )


def drawn(spec: KernelSpec, leading: tuple[int, ...]) -> tuple[Inputs, Tensor]:
    """Return inputs of a kernel, and a gradient of its output; `leading` as above."""
    inputs = spoilt_inputs(spec, leading)
    generator = torch.Generator().manual_seed(5)
    shape = (*leading, spec.value_dim)
    return inputs, torch.randn(shape, generator=generator).to(inputs.value.dtype)


def exact(
    spec: KernelSpec,
    inputs: Inputs,
    options: Mapping[str, tuple[Any, ...]],
    *,
    scale: float,
    d_output: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return results in float64 by brute force; gradients too where d_output is given."""
    plain = {"dilation": 1, "stride": 1, "is_causal": False}
    every: dict[str, Any] = {
        name: options.get(name, (value,) * spec.rank) for name, value in plain.items()
    }
    given: dict[str, Any] = {
        name: tensor.double().numpy()
        for name, tensor in zip(Inputs._fields, inputs, strict=True)
        if tensor is not None
    }
    if d_output is not None:
        given["d_output"] = d_output.double().numpy()
    attention: Any = brute_force.attention
    with np.errstate(invalid="ignore", over="ignore"):
        found = attention(**given, kernel_size=spec.kernel_size, scale=scale, **every)
    return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}
