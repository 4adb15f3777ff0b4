"""Random calls of kernels, and the shapes that broke others, against brute force.

More calls, different in each run: `pytest -k sweep --hypothesis-profile=natc-long`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.built_kernels import BuiltKernels
from support.calls import call_of, check_av, check_fused, check_qk
from support.emulator import Emulated, emulate
from support.guarded_calls import GuardedKernel
from support.sweep import (
    check_between_guards,
    few_examples,
    fused_calls,
    unfused_calls,
    without_rpb,
)

import natc
from natc import functional
from natc.dispatch import launch
from natc.operations import operations_of
from natc.spec import KernelSpec

# Every rank and dtype; extreme kernel sizes and channels, some that no vector register divides.
SPECS = [
    KernelSpec.parse(name)
    for name in (
        "na1d_k63_d1_float32",
        "na1d_k2_d256_bfloat16_rpb",
        "na1d_k16_d12v5_float16_rpb",
        "na1d_k5_d20_float64",
        "na2d_k7_d32_float32_rpb",
        "na2d_k4x5_d24_bfloat16",
        "na2d_k13x2_d3v64_float32_rpb",
        "na2d_k3_d20_float16_rpb",
        "na3d_k3_d12_float32",
        "na3d_k2x3x4_d8_bfloat16_rpb",
        # Windows of 1: on an axis, and on every axis.
        "na3d_k1x2x3_d64v1_float16",
        "na2d_k1_d3_float16_rpb",
    )
]
WITH_OPERATORS = [spec for spec in SPECS if spec.value_dim == spec.head_dim]
once = few_examples(8)
one_thread = pytest.mark.usefixtures("one_thread")
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
each_with_operators = pytest.mark.parametrize("spec", WITH_OPERATORS, ids=str)


def operators(built: BuiltKernels, spec: KernelSpec) -> tuple[Any, Any]:
    """Return na*d_qk and na*d_av of a kernel, built with the operations of their gradients."""
    built.need_operators(spec)
    return tuple(getattr(functional, f"na{spec.rank}d_{name}") for name in ("qk", "av"))


def guarded_kernel(built: BuiltKernels, spec: KernelSpec, **options: int) -> GuardedKernel:
    def open_operation(operation: str, rpb: bool) -> Any:
        return built.function(dataclasses.replace(spec, rpb=rpb), operation)

    return GuardedKernel(open_operation, **options)


@one_thread
@each_spec
@once
@given(data=st.data())
def test_sweep_of_attention(built: BuiltKernels, spec: KernelSpec, data: st.DataObject) -> None:
    built.need(spec, *operations_of(spec, ("forward", "backward"), "llvm"))
    check_fused(data.draw(fused_calls(spec)), natc.neighborhood_attention)


@one_thread
@each_with_operators
@once
@given(data=st.data())
def test_sweep_of_the_operators(
    built: BuiltKernels, spec: KernelSpec, data: st.DataObject
) -> None:
    qk, av = operators(built, spec)
    call = data.draw(unfused_calls(spec))
    check_qk(call, qk)
    check_av(call, av)


@one_thread
@each_spec
@once
@given(data=st.data(), chunks=st.sampled_from((1, 2, 7)))
def test_sweep_of_operations_between_guards(
    built: BuiltKernels, spec: KernelSpec, data: st.DataObject, chunks: int
) -> None:
    """Each function by itself: none writes or reads beside its tensors."""
    check_between_guards(guarded_kernel(built, spec, chunks=chunks), spec, data)


PARTS = [
    KernelSpec.parse(name)
    for name in ("na1d_k16_d12v5_float16_rpb", "na2d_k7_d32_float32_rpb", "na3d_k3_d12_float32")
]


@one_thread
@pytest.mark.parametrize("spec", PARTS, ids=str)
@once
@given(data=st.data(), heads=st.integers(1, 5))
def test_sweep_of_calls_in_parts(
    built: BuiltKernels, spec: KernelSpec, data: st.DataObject, heads: int
) -> None:
    """Kernels count in 32 bits: larger calls are cut up. Here what fits is a few heads.

    NATTEN computed positions beyond 2^31 elements in 32 bits (its pull request 337).
    """
    built.need(spec, *operations_of(spec, ("forward", "backward"), "llvm"))
    unfused = operators(built, spec) if spec in WITH_OPERATORS else ()
    call = data.draw(fused_calls(spec))
    positions = math.prod(call.spatial)
    per_position = max(
        spec.head_dim, spec.value_dim, *((math.prod(spec.kernel_size),) * len(unfused))
    )
    # The partial sums of rpb's gradient, which are for some 32 queries each, are not cut up.
    partial = (call.batch * positions // 32 + 1) * math.prod(2 * k - 1 for k in spec.kernel_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "MOST_ELEMENTS", max(heads * positions * per_position, partial))
        check_fused(call, natc.neighborhood_attention)
        for check, operator in zip((check_qk, check_av), unfused):
            check(dataclasses.replace(call, packed=False), operator)


EMULATED = [
    KernelSpec.parse(name)
    for name in (
        "na1d_k5_d20_bfloat16_rpb",
        "na2d_k2x3_d12_float32_rpb",
        "na2d_k3_d8v3_float16",
        "na3d_k2x3x2_d12_float32",
        "na3d_k3x1x2_d4_float32_rpb",
        "na2d_k1_d8_float16_rpb",
    )
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Emulated]:
    """Return a function that builds operations for a GPU, to be executed on this CPU."""

    @functools.cache
    def build(spec: KernelSpec, *operations: str) -> Emulated:
        return emulate(spec, operations, tmp_path_factory.mktemp("emulated"))

    return build


@one_thread
@pytest.mark.parametrize("spec", EMULATED, ids=str)
@once
@given(data=st.data(), chunks=st.sampled_from((1, 2, 7)))
def test_sweep_of_emulated_cuda_kernels(
    emulated: Callable[..., Emulated],
    spec: KernelSpec,
    data: st.DataObject,
    chunks: int,
) -> None:
    """The CUDA source of kernels, executed on this CPU, between guards."""
    own = [
        name
        for name in operations_of(spec)
        if not name.endswith("_packed") and not (spec.rpb and name in ("av", "inverse_av"))
    ]

    def open_operation(operation: str, rpb: bool) -> Any:
        if rpb == spec.rpb:
            return emulated(spec, *own)[operation]
        return emulated(without_rpb(spec), "qk", "av", "inverse_av")[operation]

    check_between_guards(GuardedKernel(open_operation, chunks=chunks), spec, data)


PARTIAL = KernelSpec.parse("na1d_k5_d20_float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_sweep_of_partial_tiles(built: BuiltKernels, dtype: str) -> None:
    """Gradients are finite and right whatever part of a last tile a map fills.

    NATTEN read keys and gradients of queries beyond the map there, whatever was in memory, and
    d_value became NaN (its pull request 341). Here memory around every tensor is NaN.
    """
    spec = dataclasses.replace(PARTIAL, dtype=dtype)
    built.need_attention(spec)
    for length in (*range(1, 36), 63, 64, 65, 127, 128, 129):
        for dilation in (1, 3):
            call = call_of(spec, (length,), dilation=(dilation,), heads=2, seed=length)
            check_fused(call, natc.neighborhood_attention)


def test_sweep_of_partial_tiles_of_planes(built: BuiltKernels) -> None:
    spec = KernelSpec.parse("na2d_k7_d32_float32_rpb")
    built.need(spec)
    for height, width in ((1, 17), (17, 1), (7, 8), (8, 9), (15, 16), (16, 15), (9, 33)):
        call = call_of(spec, (height, width), heads=3, heads_kv=1, batch=2)
        check_fused(call, natc.neighborhood_attention)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e3])
def test_sweep_of_large_16_bit_inputs_is_finite(
    built: BuiltKernels, dtype: str, size: float
) -> None:
    """NATTEN's issue 307: NaN in bfloat16 from finite inputs, where sums or scores grow."""
    spec = dataclasses.replace(PARTIAL, dtype=dtype)
    built.need_attention(spec)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 2, 67, 3, 20, generator=generator).to(getattr(torch, dtype))
    query, key = ((size**0.5 * t).requires_grad_() for t in drawn[:2])
    value = drawn[2].clone().requires_grad_()
    for is_causal in (False, True):
        output, lse = natc.na1d(query, key, value, 5, is_causal=is_causal, return_lse=True)
        assert bool(output.isfinite().all()) and bool(lse.isfinite().all())
        assert output.abs().max() <= value.abs().max()
        upstream = (drawn[3], torch.ones_like(lse))
        for gradient in torch.autograd.grad((output, lse), (query, key, value), upstream):
            assert bool(gradient.isfinite().all())
