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
)
BACKWARD = operations_of(SEVEN, ("backward",), "llvm")
# As large as the window; odd ends of rows and of columns; several strips; bands; dilation.
SIZES = ((0, 0), (1, 2), (2, 7), (0, 19), (40, 3))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_maps_of_every_form(built: BuiltKernels, spec: KernelSpec) -> None:
    rows, columns = spec.kernel_size
    for more_rows, more_columns in SIZES:
        sizes = (rows + more_rows, columns + more_columns)
        call = Call(sizes, batch=1, heads=2, heads_kv=1)
        check_operations(lambda name: built.function(spec, name), spec, call, [GRADIENTS])
    call = Call((3 * rows + 2, 2 * columns + 1), batch=2, heads=1, heads_kv=1, dilation=(3, 2))
    check_operations(lambda name: built.function(spec, name), spec, call, [GRADIENTS])


def test_threads_change_no_bit(built: BuiltKernels) -> None:
    built.need_attention(SEVEN)
    inputs, d_output = drawn(SEVEN, (2, 58, 23, 2))
    expected = gradients(inputs, d_output)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for result, exact in zip(gradients(inputs, d_output), expected, strict=True):
            assert torch.equal(result, exact)


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


def gradients(inputs: list[torch.Tensor], d_output: torch.Tensor) -> tuple[torch.Tensor, ...]:
    output = natc.na2d(*inputs[:3], 7, rpb=inputs[3])
    return torch.autograd.grad(output, inputs, d_output)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_parts_of_larger_tensors_are_read_and_written_in_place(
    built: BuiltKernels, spec: KernelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor is a part of one that is larger on each axis and NaN elsewhere."""
    built.need_attention(spec)
    dtype = getattr(torch, spec.dtype)
    rows, columns = spec.kernel_size
    inputs, d_output = drawn(spec, (2, rows + 4, 3 * columns + 1, 3))
    *compact, rpb = (t.detach().to(dtype) for t in (*inputs[:3], d_output, inputs[3]))
    rpb = rpb.float() if spec.rpb else None
    options = Options(spec.kernel_size, (1, 1), (1, 1), (False, False), 0.3)
    lse = torch.zeros(compact[0].shape[:-1])
    monkeypatch.setattr(torch, "empty_like", lambda t, **_: t.new_full(t.shape, math.nan))

    def swept(tensors: Sequence[torch.Tensor], results: Any) -> list[torch.Tensor | None]:
        query, key, value, d_output = tensors
        kernel = dispatch.sweep_kernel(query, value, rpb, lse, None, options)
        assert kernel is not None
        everything = (*(query, key, value, rpb, d_output, None, options), results)
        return list(dispatch.run_sweep(kernel, *everything))

    def part(tensor: torch.Tensor) -> torch.Tensor:
        larger = torch.full([n + 2 for n in tensor.shape[:-1]] + [64 * 3], math.nan, dtype=dtype)
        inner = larger[1:-1, 1:-1, 1:-1, 1:-1, 64 : 64 + spec.head_dim]
        inner.copy_(tensor)
        assert dispatch.can_hold(inner, 64) and not inner.is_contiguous()
        return inner

    expected = swept(compact, None)
    results = [part(torch.full_like(compact[0], math.nan)) for _ in range(3)]
    for result, exact in zip(swept([part(t) for t in compact], results), expected, strict=True):
        if exact is not None:
            assert result is not None and torch.equal(result, exact)
            assert bool(exact.isfinite().all())
    for result in results:
        outside = result._base.clone()
        outside[1:-1, 1:-1, 1:-1, 1:-1, 64 : 64 + spec.head_dim] = math.nan
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


def test_specs_without_it() -> None:
    for name in ("na1d_k7_d32_float32", "na2d_k7_d32_float64", "na2d_k7_d20_float32"):
        assert GRADIENTS not in natc.operations.operations_of(KernelSpec.parse(name), kind="llvm")
    assert GRADIENTS not in natc.operations.operations_of(
        dataclasses.replace(SEVEN, rpb=False), kind="cuda"
    )
