"""Every operation of the CUDA kernels in NATC_LIB_PATH, each function by itself, on a GPU.

`gpu_libraries` says how to make some.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
import tvm_ffi
from support.forward_checks import call_forward, check_forward
from support.gpu_libraries import specs

import natc
from natc import runtime
from natc.checks.inputs import Inputs, inputs_of
from natc.checks.operations import Call, calls, check_operations
from natc.checks.tolerance import RELATIVE_TOLERANCE
from natc.operations import operations_of
from natc.reference import neighborhood_attention, neighborhood_gradients
from natc.spec import KernelSpec
from natc.window import taps


@functools.cache
def functions(spec: KernelSpec) -> dict[str, Any]:
    """Return the packed function of each operation of a kernel that runs here."""
    compiled = {}
    for operation in operations_of(spec):
        choice = runtime.explain(spec, "cuda", operation=operation).choice
        if choice is not None and choice.library.spec == spec:
            module = tvm_ffi.load_module(str(choice.library.path))
            compiled[operation] = module[choice.function]
    return compiled


SPECS = specs(functions, "at all")
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
# Many blocks of threads, the last partly used. Functions that can use tensor cores use them
# for calls without strides, and a kernel for CUDA cores for the other calls.
LARGE = {
    1: (Call((1031,), heads=6, heads_kv=2, dilation=(7,)), Call((5,), batch=700)),
    2: (
        Call((31, 45), heads=6, heads_kv=2, dilation=(2, 3), stride=(2, 1)),
        Call((56, 5), batch=9, is_causal=(False, True)),
        Call((57, 61), batch=1, heads=2, heads_kv=1, dilation=(1, 2)),
    ),
    3: (
        Call((5, 17, 11), heads=3, heads_kv=1, stride=(1, 2, 2), is_causal=(True, False, False)),
        Call((9, 10, 21), batch=1, heads=2, heads_kv=1, dilation=(1, 2, 1)),
    ),
}


@each_spec
def test_every_operation(spec: KernelSpec) -> None:
    compiled = functions(spec)
    for seed, call in enumerate((*calls(spec.kernel_size), *LARGE[spec.rank])):
        check_operations(
            compiled.__getitem__, spec, call, list(compiled), device="cuda", seed=seed
        )


@each_spec
def test_many_sums_of_rpb(spec: KernelSpec) -> None:
    """More chunks than queries: the last are empty."""
    compiled = functions(spec)
    some = [operation for operation in ("d_rpb", "sum_rpb") if operation in compiled]
    if not some:
        pytest.skip("only kernels with a bias have these")
    for chunks in (1, 64, 1000):
        call = Call((7, 6, 5)[-spec.rank :], chunks=chunks)
        check_operations(compiled.__getitem__, spec, call, some, device="cuda")


@each_spec
def test_tensors_of_the_cpu_are_refused(spec: KernelSpec) -> None:
    compiled = functions(spec)
    for operation in compiled:
        with pytest.raises(Exception, match="device_type"):
            check_operations(
                compiled.__getitem__, spec, next(calls(spec.kernel_size)), [operation]
            )


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.rank == 1], ids=str)
def test_a_sequence_of_ten_million(spec: KernelSpec) -> None:
    """Its last positions agree with a short sequence, whose first border is far from them."""
    length, short, compared = 10_000_000, 4096, 1000
    inputs = draw(spec, (1, length, 1))
    needed = 2 * sum(t.nbytes for t in inputs if t is not None)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    query, key, value = (t[:, -short:].contiguous() for t in inputs[:3])
    end = Inputs(query, key, value, inputs.rpb)
    function = functions(spec)["forward_lse"]
    whole = call_forward(function, inputs, scale=0.3, with_lse=True)
    part = call_forward(function, end, scale=0.3, with_lse=True)
    check_forward(part, end, spec.kernel_size, scale=0.3)
    for long, expected in zip(whole, part):
        assert torch.equal(long[:, -compared:], expected[:, -compared:])


@each_spec
def test_infinities_and_nan(spec: KernelSpec) -> None:
    function = functions(spec).get("forward_lse")
    if function is None or not spec.rpb:
        pytest.skip("needs a forward with a bias")
    inputs = draw(spec, (1, *(2 * k + 1 for k in spec.kernel_size), 5))
    assert inputs.rpb is not None
    own = tuple(k - 1 for k in spec.kernel_size)  # the offset of a query's own key
    for head, value in enumerate((-torch.inf, torch.inf, torch.nan)):
        inputs.rpb[head][own] = value
    inputs.rpb[3] = -torch.inf
    output, lse = (t.cpu().double() for t in call_plain(function, inputs))
    query, key, value64 = (t.cpu().double() for t in inputs[:3])
    exact = neighborhood_attention(
        query,
        key,
        value64,
        spec.kernel_size,
        scale=0.3,
        rpb=inputs.rpb.cpu().double(),
        return_lse=True,
    )
    assert torch.equal(output.isnan(), exact[0].isnan())
    assert torch.equal(lse.nan_to_num(0.0).isinf(), exact[1].nan_to_num(0.0).isinf())
    tolerance = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}[spec.dtype]
    torch.testing.assert_close(output, exact[0], rtol=tolerance, atol=tolerance, equal_nan=True)


@each_spec
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_an_upstream_gradient_that_is_not_finite(
    spec: KernelSpec, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes the gradients of its query and of that query's keys, and no others."""
    if not set(operations_of(spec, ("forward", "backward"))) <= functions(spec).keys():
        pytest.skip("needs forward and backward")
    monkeypatch.setenv("NATC_STRICT", "1")
    sizes = [2 * k + 3 for k in spec.kernel_size]
    inputs = draw(spec, (1, *sizes, 2))
    leaves = [tensor.requires_grad_() for tensor in inputs[:3]]
    output = natc.neighborhood_attention(*leaves, spec.kernel_size, rpb=inputs.rpb)
    d_output = torch.randn_like(output)
    plain = torch.autograd.grad(output, leaves, d_output, retain_graph=True)
    at = [size // 2 for size in sizes]
    d_output[(0, *at, 0, -1)] = value
    gradients = torch.autograd.grad(output, leaves, d_output)

    lost = [torch.zeros_like(tensor, dtype=torch.bool) for tensor in leaves]
    lost[0][(0, *at, 0)] = True
    keys = itertools.product(*map(taps, at, sizes, spec.kernel_size))
    for key in keys:
        lost[1][(0, *key, 0)] = True
        lost[2][(0, *key, 0, -1)] = True
    tolerance = 2 * RELATIVE_TOLERANCE[output.dtype]
    for gradient, without, gone in zip(gradients, plain, lost, strict=True):
        assert torch.equal(~gradient.isfinite(), gone)
        largest = without.abs().max().item()
        torch.testing.assert_close(
            gradient[~gone], without[~gone], rtol=tolerance, atol=tolerance * largest
        )


@each_spec
def test_gradients_beside_numbers_that_are_not_finite(spec: KernelSpec) -> None:
    """A key that is NaN is in the gradients of the queries that attend to it, and of no others."""
    function = functions(spec).get("d_query")
    if function is None:
        pytest.skip("needs the gradient of the query")
    inputs = draw(spec, (1, *(2 * k + 1 for k in spec.kernel_size), 5))
    inputs.key.view(-1)[inputs.key.numel() // 2] = torch.nan
    d_output = torch.randn_like(inputs.value)
    wide = {name: t.cpu().double() for name, t in inputs._asdict().items() if t is not None}
    options: dict[str, Any] = {"scale": 0.3, "kernel_size": spec.kernel_size}
    output, lse = neighborhood_attention(**wide, **options, return_lse=True)
    delta = (d_output.cpu().double() * output).sum(-1)
    exact = neighborhood_gradients(**wide, **options, d_output=d_output.cpu().double())[0]
    assert exact is not None
    result = torch.empty_like(inputs.query)
    arguments = [t for t in inputs if t is not None]
    numbers = (lse, torch.zeros_like(lse), delta)
    arguments += [d_output, *(x.float().to(result.device) for x in numbers)]
    function(*arguments, result, 0.3, *[1] * spec.rank, *[1] * spec.rank, *[0] * spec.rank, 1)
    actual = result.cpu().double()
    assert 0 < exact.isnan().sum() < exact.numel() / 2
    assert torch.equal(actual.isnan(), exact.isnan())
    tolerance = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}[spec.dtype]
    torch.testing.assert_close(actual, exact, rtol=tolerance, atol=tolerance, equal_nan=True)


def call_plain(function: Any, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Call without the guards, which NaN in the inputs would look like."""
    leading = inputs.query.shape[:-1]
    output = inputs.query.new_empty(*leading, inputs.value.shape[-1])
    lse = torch.empty(leading, device="cuda")
    rank = len(leading) - 2
    tail = (0.3, *[1] * rank, *[1] * rank, *[0] * rank, 1)
    function(*(t for t in inputs if t is not None), output, lse, *tail)
    return output, lse


def draw(spec: KernelSpec, leading: tuple[int, ...]) -> Inputs:
    return inputs_of(spec, leading, device="cuda")
