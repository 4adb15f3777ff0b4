"""Random calls of the CUDA kernels in NATC_LIB_PATH against brute force: results and gradients.

Of every kernel found there that has all its operations. To make some, here or elsewhere:
`natc build --kernel 7 --target cuda --arch sm_90 -o DIRECTORY`; then NATC_LIB_PATH=DIRECTORY.
More calls, different in each run: `pytest -k sweep --hypothesis-profile=natc-long`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.calls import call_of, check_av, check_fused, check_qk, draw_fused
from support.gpu_libraries import has, specs
from support.guarded_calls import GuardedKernel
from support.sweep import (
    check_between_guards,
    few_examples,
    fused_calls,
    unfused_calls,
    without_rpb,
)

import natc
from natc import functional, runtime
from natc.operations import operations_of
from natc.spec import KernelSpec

SPECS = specs(
    lambda spec: has(spec, *operations_of(spec, ("forward", "backward"))), "with every operation"
)


# The gradient of one operator is another, which has no bias.
WITH_OPERATORS = [
    spec
    for spec in SPECS
    if spec.head_dim == spec.value_dim
    and has(spec, *operations_of(spec, ("unfused",)))
    and has(without_rpb(spec), "qk", "av", "inverse_av")
]
once = few_examples(5)
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
each_with_operators = pytest.mark.parametrize("spec", WITH_OPERATORS, ids=str)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No call may run on the reference; and torch wants to be told how to use cuBLAS."""
    monkeypatch.setenv("NATC_STRICT", "1")
    monkeypatch.setenv(
        "CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    )
    yield


@each_spec
@once
@given(data=st.data())
def test_sweep_of_attention(spec: KernelSpec, data: st.DataObject) -> None:
    check_fused(data.draw(fused_calls(spec)), natc.neighborhood_attention, "cuda")


@each_with_operators
@once
@given(data=st.data())
def test_sweep_of_the_operators(spec: KernelSpec, data: st.DataObject) -> None:
    call = data.draw(unfused_calls(spec))
    check_qk(call, getattr(functional, f"na{spec.rank}d_qk"), "cuda")
    check_av(call, getattr(functional, f"na{spec.rank}d_av"), "cuda")


@each_spec
@once
@given(data=st.data(), chunks=st.sampled_from((1, 2, 7)))
def test_sweep_of_operations_between_guards(
    spec: KernelSpec, data: st.DataObject, chunks: int
) -> None:
    """Each function by itself: none writes or reads beside its tensors."""

    def open_operation(operation: str, rpb: bool) -> Any:
        import tvm_ffi

        chosen = dataclasses.replace(spec, rpb=rpb)
        choice = runtime.explain(chosen, "cuda", operation=operation).choice
        assert choice is not None
        return tvm_ffi.load_module(str(choice.library.path))[choice.function]

    kernel = GuardedKernel(open_operation, chunks=chunks)
    check_between_guards(kernel, spec, data, "cuda", unfused=spec in WITH_OPERATORS)


@each_spec
def test_sweep_of_partial_tiles(spec: KernelSpec) -> None:
    """Where an axis ends with its last tile, one before, or one after; memory around is NaN."""
    lengths = {1: (1, 31, 32, 33, 127, 129, 257), 2: (1, 7, 8, 9, 16, 17), 3: (1, 4, 5, 8)}
    for length in lengths[spec.rank]:
        for width in (length, 3):
            spatial = (width,) * (spec.rank - 1) + (length,)
            call = call_of(spec, spatial, heads=3, heads_kv=1, batch=2, seed=length)
            check_fused(call, natc.neighborhood_attention, "cuda")


@each_spec
def test_gradients_are_the_same_bits(spec: KernelSpec) -> None:
    spatial = {1: (3000,), 2: (57, 61), 3: (11, 13, 17)}[spec.rank]
    call = call_of(spec, spatial, heads=4, heads_kv=2, batch=2)
    inputs, upstream = draw_fused(call, "cuda")

    def run() -> list[torch.Tensor]:
        results = natc.neighborhood_attention(**inputs, **call.options, return_lse=True)
        gradients = torch.autograd.grad(results, list(inputs.values()), list(upstream.values()))
        return [*results, *gradients]

    first = run()
    for _ in range(3):
        for again, gradient in zip(run(), first, strict=True):
            assert torch.equal(again, gradient)


def test_gradients_beyond_32_bits_are_right_at_their_end() -> None:
    """Positions of 2^31 elements and more; NATTEN computed them in 32 bits (pull request 337)."""
    spec = min(SPECS, key=lambda kernel: (getattr(torch, kernel.dtype).itemsize, -kernel.head_dim))
    dtype, heads = getattr(torch, spec.dtype), 8
    spatial = {1: (4096,), 2: (64, 64), 3: (16, 16, 16)}[spec.rank]
    entry = 4096 * heads * min(spec.head_dim, spec.value_dim)
    batch = 2**31 // entry + 2
    needed = 16 * batch * 4096 * heads * max(spec.head_dim, spec.value_dim) * dtype.itemsize
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    last = call_of(spec, spatial, heads=heads, heads_kv=heads)
    inputs, upstream = draw_fused(last, "cuda")

    def run(inputs: dict[str, torch.Tensor], d_output: torch.Tensor) -> dict[str, torch.Tensor]:
        output = natc.neighborhood_attention(**inputs, **last.options)
        gradients = torch.autograd.grad(output, list(inputs.values()), d_output)
        return dict(zip(inputs, gradients, strict=True)) | {"output": output.detach()}

    def among_zeros(tensor: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(batch, *tensor.shape[1:], dtype=tensor.dtype, device="cuda")
        whole[-1:] = tensor.detach()
        return whole

    expected = run(inputs, upstream["d_output"])
    wide = {
        name: (tensor.detach() if name == "rpb" else among_zeros(tensor)).requires_grad_()
        for name, tensor in inputs.items()
    }
    gradients = run(wide, among_zeros(upstream["d_output"]))
    for name, tensor in gradients.items():
        if name == "rpb":
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(tensor[-1:], expected[name]), name
            assert not bool(tensor[:-1].any()), name
