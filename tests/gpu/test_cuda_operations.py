"""Every operation of the CUDA kernels in NATC_LIB_PATH, each function by itself, on a GPU.

`gpu_libraries` says how to make some.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import tvm_ffi
from gpu_libraries import specs

from natc import runtime
from natc.operations import operations_of
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec
from natc.testing.direct import assert_right, call
from natc.testing.every_operation import Call, assert_operations_right, calls
from natc.testing.inputs import Inputs, make_inputs


@functools.cache
def functions(spec: KernelSpec) -> dict[str, Any]:
    """Return the packed function of each operation of a kernel that runs here."""
    found = {}
    for operation in operations_of(spec):
        choice = runtime.explain(spec, "cuda", operation=operation).choice
        if choice is not None and choice.library.spec == spec:
            module = tvm_ffi.load_module(str(choice.library.path))
            found[operation] = module[choice.function]
    return found


SPECS = specs(functions, "at all")
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
# Many blocks of threads, the last of them partly used.
LARGE = {
    1: (Call((1031,), heads=6, heads_kv=2, dilation=(7,)), Call((5,), batch=700)),
    2: (
        Call((31, 45), heads=6, heads_kv=2, dilation=(2, 3), stride=(2, 1)),
        Call((56, 5), batch=9, is_causal=(False, True)),
    ),
    3: (Call((5, 17, 11), heads=3, heads_kv=1, stride=(1, 2, 2), is_causal=(True, False, False)),),
}


@each_spec
def test_every_operation(spec: KernelSpec) -> None:
    found = functions(spec)
    for seed, one in enumerate((*calls(spec.rank), *LARGE[spec.rank])):
        assert_operations_right(
            found.__getitem__, spec, one, list(found), device="cuda", seed=seed
        )


@each_spec
def test_many_sums_of_rpb(spec: KernelSpec) -> None:
    """More chunks than queries: the last are empty."""
    found = functions(spec)
    some = [operation for operation in ("d_rpb", "sum_rpb") if operation in found]
    if not some:
        pytest.skip("only kernels with a bias have these")
    for chunks in (1, 64, 1000):
        one = Call((7, 6, 5)[-spec.rank :], chunks=chunks)
        assert_operations_right(found.__getitem__, spec, one, some, device="cuda")


@each_spec
def test_tensors_of_the_cpu_are_refused(spec: KernelSpec) -> None:
    found = functions(spec)
    for operation in found:
        with pytest.raises(Exception, match="device_type"):
            assert_operations_right(found.__getitem__, spec, next(calls(spec.rank)), [operation])


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.rank == 1], ids=str)
def test_a_sequence_of_ten_million(spec: KernelSpec) -> None:
    """Its last positions are those of a short sequence, whose border is far from them."""
    length, short, compared = 10_000_000, 4096, 1000
    inputs = draw(spec, (1, length, 1))
    needed = 2 * sum(t.nbytes for t in inputs if t is not None)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    query, key, value = (t[:, -short:].contiguous() for t in inputs[:3])
    end = Inputs(query, key, value, inputs.rpb)
    function = functions(spec)["forward_lse"]
    whole = call(function, inputs, scale=0.3, with_lse=True)
    part = call(function, end, scale=0.3, with_lse=True)
    assert_right(part, end, spec.kernel_size, scale=0.3)
    for one, other in zip(whole, part):
        assert torch.equal(one[:, -compared:], other[:, -compared:])


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
    return make_inputs(
        (*leading, spec.head_dim),
        kernel_size=spec.kernel_size if spec.rpb else None,
        value_dim=spec.value_dim,
        dtype=getattr(torch, spec.dtype),
        device="cuda",
    )
