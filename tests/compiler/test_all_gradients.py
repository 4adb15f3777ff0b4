"""The kernel of all gradients at once: between guards, for any threads, and beside numbers that
must not spread.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.built_kernels import BuiltKernels

import natc
from natc import functional
from natc.checks.operations import Call, check_operations
from natc.dispatch import fused_backward
from natc.dispatch import sweep as dispatch
from natc.dispatch.call import Options
from natc.operations import GRADIENTS, operations_of
from natc.spec import KernelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

SEVEN = KernelSpec.parse("na2d_k7_d32_float32_rpb")
SPECS = (
    SEVEN,
    KernelSpec.parse("na2d_k3x5_d24_float16"),
    KernelSpec.parse("na2d_k9x4_d8_bfloat16_rpb"),
    # Windows of three vectors of taps, and of so many that their sums do not fit into registers.
    KernelSpec.parse("na1d_k21_d16_bfloat16_rpb"),
    KernelSpec.parse("na1d_k63_d8_float32"),
    KernelSpec.parse("na3d_k3x2x5_d8_float32_rpb"),
    KernelSpec.parse("na3d_k2x3x2_d16_float16"),
)
BACKWARD = operations_of(SEVEN, ("backward",), "llvm")
# By how much a map is larger than the window: as large; odd ends of rows and of columns; several
# strips; bands; planes that more and fewer planes of queries reach than a window has.
SIZES = {
    1: ((0,), (1,), (2,), (7,), (19,), (200,)),
    2: ((0, 0), (1, 2), (2, 7), (0, 19), (40, 3)),
    3: ((0, 0, 0), (1, 1, 2), (6, 2, 7), (2, 0, 19), (1, 22, 3)),
}


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_maps_of_every_form(built: BuiltKernels, spec: KernelSpec) -> None:
    for more in SIZES[spec.rank]:
        sizes = tuple(k + n for k, n in zip(spec.kernel_size, more))
        call = Call(sizes, batch=1, heads=2, heads_kv=1)
        check_operations(lambda name: built.function(spec, name), spec, call, [GRADIENTS])
    dilation = (4, 3, 2)[-spec.rank :]
    sizes = tuple(k * d + d - 1 for k, d in zip(spec.kernel_size, dilation))
    call = Call(sizes, batch=2, heads=1, heads_kv=1, dilation=dilation)
    check_operations(lambda name: built.function(spec, name), spec, call, [GRADIENTS])


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [(SEVEN, (58, 23)), (SPECS[3], (140,)), (SPECS[5], (5, 21, 17))],
    ids=str,
)
def test_threads_change_no_bit(
    built: BuiltKernels, spec: KernelSpec, sizes: tuple[int, ...]
) -> None:
    built.need(spec, GRADIENTS)
    tensors, rpb = compact(spec, (2, *sizes, 2))
    expected = swept(spec, tensors, rpb)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for result, exact in zip(swept(spec, tensors, rpb), expected, strict=True):
            assert torch.equal(result, exact)


@pytest.mark.parametrize(("spec", "sizes"), [(SPECS[4], (70,)), (SPECS[5], (4, 5, 9))], ids=str)
def test_training_runs_it_on_maps_of_other_ranks(
    built: BuiltKernels,
    spec: KernelSpec,
    sizes: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built.need(spec, "forward_lse", GRADIENTS)
    inputs, d_output = drawn(spec, (1, *sizes, 2))
    leaves = inputs if spec.rpb else inputs[:3]
    of_reference = natc.reference.neighborhood_attention
    attention = natc.neighborhood_attention
    results = []
    for call, dtype in ((attention, torch.float32), (of_reference, torch.float64)):
        own = [t.detach().to(dtype).requires_grad_() for t in leaves]
        bias = own[3] if spec.rpb else None
        output = call(*own[:3], spec.kernel_size, rpb=bias)
        with monkeypatch.context() as patch:
            for name in ("_kernels", "composed"):  # other ways to compute gradients
                patch.setattr(fused_backward, name, None)
            results.append(torch.autograd.grad(output, own, d_output.to(dtype)))
    for result, exact in zip(*results, strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_stay_in_their_windows(
    built: BuiltKernels, value: float
) -> None:
    built.need_attention(SEVEN)
    shape, at = (1, 20, 21, 1), (0, 10, 11, 0)
    inputs, d_output = drawn(SEVEN, shape)
    clean = gradients(inputs, d_output)
    for number in range(4):
        changed = [tensor.detach().clone() for tensor in (*inputs[:3], d_output)]
        changed[number][at] = value
        leaves = [*(t.requires_grad_() for t in changed[:3]), inputs[3]]
        results = gradients(leaves, changed[3])
        # Neither a key nor a query further away than two windows has to do with it.
        far = torch.ones(shape[1:3], dtype=torch.bool)
        far[4:17, 5:18] = False
        for result, exact in zip(results[:3], clean[:3], strict=True):
            assert torch.equal(result[0, :, :, 0][far], exact[0, :, :, 0][far])


def test_a_kernel_without_it_takes_a_kernel_for_each(
    built: BuiltKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.need_attention(SEVEN)
    inputs, d_output = drawn(SEVEN, (1, 9, 12, 2))
    swept = gradients(inputs, d_output)
    called: list[str] = []
    launch = fused_backward.launch

    def noting(kernel: Any, operation: str, *arguments: Any) -> None:
        called.append(operation)
        launch(kernel, operation, *arguments)

    monkeypatch.setattr(fused_backward, "launch", noting)
    monkeypatch.setattr(dispatch, "find", lambda key: None)
    for result, exact in zip(gradients(inputs, d_output), swept, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-5)
    assert called == ["delta", "d_query", "d_key", "d_value", "d_rpb"]


def test_one_gradient_alone_takes_its_own_kernel(
    built: BuiltKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.need_attention(SEVEN)
    inputs, d_output = drawn(SEVEN, (1, 9, 12, 2))
    everything = gradients(inputs, d_output)
    for number, exact in enumerate(everything):
        output = natc.na2d(*inputs[:3], 7, rpb=inputs[3])
        (alone,) = torch.autograd.grad(output, inputs[number], d_output)
        torch.testing.assert_close(alone, exact, rtol=1e-4, atol=1e-5)
    for pair in itertools.combinations(range(4), 2):
        output = natc.na2d(*inputs[:3], 7, rpb=inputs[3])
        both = torch.autograd.grad(output, [inputs[n] for n in pair], d_output)
        for number, result in zip(pair, both, strict=True):
            assert torch.equal(result, everything[number])


def drawn(spec: KernelSpec, shape: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    offsets = [2 * k - 1 for k in spec.kernel_size]
    shapes = [*[(*shape, spec.head_dim)] * 4, (shape[-1], *offsets)]
    *vectors, d_output, rpb = (torch.randn(size, generator=generator) for size in shapes)
    return [t.requires_grad_() for t in (*vectors, rpb)], d_output


def compact(
    spec: KernelSpec, shape: tuple[int, ...]
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Return query, key, value and d_output in the kernel's dtype, and a bias if it has one."""
    inputs, d_output = drawn(spec, shape)
    dtype = getattr(torch, spec.dtype)
    tensors = [t.detach().to(dtype) for t in (*inputs[:3], d_output)]
    return tensors, inputs[3].detach() if spec.rpb else None


def swept(
    spec: KernelSpec,
    tensors: Sequence[torch.Tensor],
    rpb: torch.Tensor | None,
    results: Any = None,
) -> list[torch.Tensor]:
    """Return all gradients, as dispatch computes them with the kernel of `gradients`."""
    query, key, value, d_output = tensors
    unit_steps, not_causal = (1,) * spec.rank, (False,) * spec.rank
    options = Options(spec.kernel_size, unit_steps, unit_steps, not_causal, 0.3)
    lse = torch.zeros(query.shape[:-1])
    kernel = dispatch.sweep_kernel(query, value, rpb, lse, None, options)
    assert kernel is not None
    everything = (query, key, value, rpb, d_output, None, options, results)
    return [t for t in dispatch.run_sweep(kernel, *everything) if t is not None]


def gradients(inputs: list[torch.Tensor], d_output: torch.Tensor) -> tuple[torch.Tensor, ...]:
    output = natc.na2d(*inputs[:3], 7, rpb=inputs[3])
    return torch.autograd.grad(output, inputs, d_output)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_parts_of_larger_tensors_are_read_and_written_in_place(
    built: BuiltKernels, spec: KernelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor is a part of one that is larger on each axis and NaN elsewhere."""
    built.need(spec, GRADIENTS)
    sizes = [k + 4 for k in spec.kernel_size[:-1]] + [3 * spec.kernel_size[-1] + 1]
    tensors, rpb = compact(spec, (2, *sizes, 3))
    monkeypatch.setattr(torch, "empty_like", lambda t, **_: t.new_full(t.shape, math.nan))
    inside = (*[slice(1, -1)] * (spec.rank + 2), slice(64, 64 + spec.head_dim))

    def part(tensor: torch.Tensor) -> torch.Tensor:
        larger = tensor.new_full([n + 2 for n in tensor.shape[:-1]] + [64 * 3], math.nan)
        larger[inside] = tensor
        inner = larger[inside]
        assert dispatch.can_hold(inner, 64) and not inner.is_contiguous()
        return inner

    expected = swept(spec, tensors, rpb)
    places = [part(torch.full_like(tensors[0], math.nan)) for _ in range(3)]
    results = swept(spec, [part(t) for t in tensors], rpb, places)
    for result, exact in zip(results, expected, strict=True):
        assert torch.equal(result, exact)
        assert bool(exact.isfinite().all())
    for place in places:
        outside = place._base.clone()
        outside[inside] = math.nan
        assert bool(outside.isnan().all())


def test_gradients_of_a_packed_tensor_are_written_to_one(
    built: BuiltKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.need(SEVEN, "forward_lse_packed", "forward_lse", *BACKWARD)
    inputs, d_output = drawn(SEVEN, (2, 9, 12, 2))
    expected = gradients(inputs, d_output)
    qkv = torch.stack(inputs[:3], -3).detach().requires_grad_()
    monkeypatch.setattr(torch, "stack", None)
    output = functional.na2d_qkvpacked(qkv, 7, rpb=inputs[3])
    d_qkv, d_rpb = torch.autograd.grad(output, (qkv, inputs[3]), d_output)
    for result, exact in zip((*d_qkv.unbind(-3), d_rpb), expected, strict=True):
        assert torch.equal(result, exact)


def test_volumes_of_more_sums_than_32_bits_count_take_a_kernel_for_each(
    built: BuiltKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS[5]
    built.need(spec, GRADIENTS)
    tensors, rpb = compact(spec, (1, 4, 5, 9, 1))
    elements = tensors[0].numel()
    monkeypatch.setattr(dispatch, "MOST_ELEMENTS", 4 * elements)
    assert swept(spec, tensors, rpb)
    monkeypatch.setattr(dispatch, "MOST_ELEMENTS", 4 * elements - 1)
    with pytest.raises(AssertionError):
        swept(spec, tensors, rpb)


def test_specs_without_it() -> None:
    for name in (
        "na1d_k1_d32_float32",
        "na3d_k1x7x7_d32_float32",
        "na3d_k3x3x17_d32_float32",
        "na2d_k7_d32_float64",
        "na2d_k7_d20_float32",
    ):
        assert GRADIENTS not in natc.operations.operations_of(KernelSpec.parse(name), kind="llvm")
    assert GRADIENTS not in natc.operations.operations_of(
        dataclasses.replace(SEVEN, rpb=False), kind="cuda"
    )
