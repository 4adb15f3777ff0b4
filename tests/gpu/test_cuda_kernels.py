"""The forward of two-dimensional CUDA kernels in NATC_LIB_PATH, on this machine's GPUs.

`gpu_libraries` says how to make some.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import tvm_ffi
from support.forward_checks import assert_same, check_forwards, maps, self_attention
from support.fresh_process import NO_COMPILER, run_fresh
from support.gpu_libraries import has, specs
from support.layouts import misaligned, noncontiguous

import natc
from natc import runtime
from natc.checks import inputs as checks
from natc.checks.inputs import Inputs
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec

SPECS = specs(lambda spec: spec.rank == 2 and has(spec, "forward"), "of rank 2")
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
# Where one kernel is enough.
SPEC = next((s for s in SPECS if s.rpb and s.value_dim == s.head_dim), SPECS[0])
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU here")


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No call may run on the reference, and none may change the current device."""
    monkeypatch.setenv("NATC_STRICT", "1")
    before = torch.cuda.current_device()
    yield
    assert torch.cuda.current_device() == before


def inputs_of(spec: KernelSpec, leading: tuple[int, ...], **options: Any) -> Inputs:
    return checks.inputs_of(spec, leading, **{"device": "cuda", **options})


def attend(spec: KernelSpec, inputs: Inputs, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return natc.na2d(*inputs[:3], spec.kernel_size, rpb=inputs.rpb, return_lse=True, **options)


def function_of(spec: KernelSpec, operation: str) -> Any:
    choice = runtime.explain(spec, "cuda", operation=operation).choice
    assert choice is not None
    return tvm_ffi.load_module(str(choice.library.path))[choice.function]


@each_spec
def test_every_kind_of_map(spec: KernelSpec) -> None:
    for example in (*maps(spec), ((2, 28, 28, 4), (1, 1), None)):
        check_forwards(functools.partial(function_of, spec), spec, example, "cuda")


@each_spec
def test_a_window_of_the_whole_map_is_torchs_self_attention(spec: KernelSpec) -> None:
    tensors = inputs_of(spec, (2, *spec.kernel_size, 3))
    tolerance = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}[spec.dtype]
    output, _ = attend(spec, tensors)
    expected = self_attention(tensors, spec.kernel_size)
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@each_spec
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e4], ids=str)
@pytest.mark.parametrize("index", range(4), ids=["query", "key", "value", "rpb"])
def test_extreme_numbers_pass_through_as_in_torch(
    spec: KernelSpec, index: int, value: float
) -> None:
    if index == 3 and not spec.rpb:
        index = 0
    inputs = inputs_of(spec, (1, 9, 8, 2))
    spoilt = inputs[index]
    assert spoilt is not None
    spoilt.flatten()[spoilt.numel() // 2] = value
    output, lse = attend(spec, inputs)
    expected, expected_lse = neighborhood_attention(
        *inputs[:3], spec.kernel_size, rpb=inputs.rpb, return_lse=True
    )
    # Logits of 1e4 and more are exact to 1e-3 in float32, and so are the weights.
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2, equal_nan=True)
    assert torch.equal(lse.isfinite(), expected_lse.isfinite())


@each_spec
def test_the_same_call_gives_the_same_bits(spec: KernelSpec) -> None:
    inputs = inputs_of(spec, (2, 30, 31, 4))
    once = attend(spec, inputs, dilation=2)
    for _ in range(3):
        assert_same(attend(spec, inputs, dilation=2), once)


def test_any_layout_and_alignment() -> None:
    inputs = inputs_of(SPEC, (2, 9, 8, 3))
    expected = attend(SPEC, inputs)
    for change in (lambda tensor: misaligned(tensor, 16), noncontiguous):
        for index, tensor in enumerate(inputs):
            if tensor is not None:
                changed = list(inputs)
                changed[index] = change(tensor)
                assert_same(attend(SPEC, Inputs(*changed)), expected)


# Streams, graphs, threads


def test_it_runs_on_the_current_stream() -> None:
    shape = (2, 28, 28, 4)
    late, wrong = inputs_of(SPEC, shape), inputs_of(SPEC, shape, seed=1)
    expected = attend(SPEC, late)
    query = wrong.query.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attend(SPEC, wrong)  # to have memory for the results, which may take long to get
        torch.cuda._sleep(200_000_000)  # clock cycles, about 0.1 s
        query.copy_(late.query)
        output = attend(SPEC, Inputs(query, *late[1:]))
        assert not stream.query(), "the call waited for the GPU"
    # On any other stream it would have read the query before it was copied.
    stream.synchronize()
    assert_same(output, expected)


def test_it_is_captured_in_a_graph() -> None:
    shape = (2, 28, 28, 4)
    static = inputs_of(SPEC, shape)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attend(SPEC, static, dilation=2)  # the first call loads machine code
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = attend(SPEC, static, dilation=2)
    for seed in (5, 6):
        fresh = inputs_of(SPEC, shape, seed=seed)
        for tensor, new in zip(static, fresh):
            if tensor is not None:
                tensor.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(results, attend(SPEC, fresh, dilation=2))


def test_a_compiled_graph_calls_the_kernel() -> None:
    torch._dynamo.reset()

    def block(*tensors: torch.Tensor) -> torch.Tensor:
        output, lse = attend(SPEC, Inputs(*tensors))
        return torch.relu(output) + lse[..., None].to(output.dtype)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for height in (9, 15):
            inputs = inputs_of(SPEC, (2, height, 14, 3))
            torch.testing.assert_close(compiled(*inputs), block(*inputs), rtol=0, atol=0)


def test_threads_of_python_call_at_once() -> None:
    different = [inputs_of(SPEC, (2, 15, 14, 3), seed=seed) for seed in range(4)]
    expected = [attend(SPEC, inputs) for inputs in different]
    torch.cuda.synchronize()
    barrier = threading.Barrier(len(different))
    problems: list[BaseException] = []

    def work(index: int) -> None:
        try:
            barrier.wait()
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(50):
                    output = attend(SPEC, different[index])
                torch.cuda.current_stream().synchronize()
            assert_same(output, expected[index])
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(different))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems


def test_the_first_calls_of_a_process_may_come_together() -> None:
    """In a process of its own, without the compiler, from threads that never used the GPU."""
    program = f"""{NO_COMPILER}
import threading, torch, natc
from natc.reference import neighborhood_attention
heads, kernel_size = 3, {SPEC.kernel_size}
tensors = torch.randn(3, 2, 9, 8, heads, {SPEC.head_dim}, device="cuda")
query, key, value = tensors.to(torch.{SPEC.dtype})
value = value[..., :{SPEC.value_dim}]
rpb = None
if {SPEC.rpb}:
    rpb = torch.randn(heads, *(2 * size - 1 for size in kernel_size), device="cuda")
torch.cuda.synchronize()
barrier, results = threading.Barrier(6), []
def work():
    barrier.wait()
    found = natc.na2d(query, key, value, kernel_size, rpb=rpb)
    torch.cuda.synchronize()
    results.append(found)
workers = [threading.Thread(target=work) for _ in range(6)]
for worker in workers: worker.start()
for worker in workers: worker.join()
expected = neighborhood_attention(query, key, value, kernel_size, rpb=rpb)
for found in results:
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert torch.equal(found, results[0])
maps = open("/proc/self/maps").read()
print(len(results), {SPEC.name!r} in maps, "libtvm_runtime" in maps)
"""
    assert run_fresh(program) == "6 True False\n"


# Numbers beyond 32 bits


@pytest.mark.parametrize("dilation", [2**31 - 1, 2**32 + 1, 2**40])
def test_a_dilation_beyond_32_bits_is_one_beyond_the_map(dilation: int) -> None:
    inputs = inputs_of(SPEC, (1, 9, 8, 2))
    assert_same(attend(SPEC, inputs, dilation=dilation), attend(SPEC, inputs, dilation=9))


def test_a_call_beyond_32_bits_is_right_at_its_end() -> None:
    entry = 64 * 64 * 8 * SPEC.head_dim
    batch = 2**31 // entry + 2
    needed = 6 * batch * entry * getattr(torch, SPEC.dtype).itemsize
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    rpb = inputs_of(SPEC, (1, 1, 1, 8)).rpb
    if SPEC.value_dim != SPEC.head_dim:
        pytest.skip("needs a kernel whose values have the head_dim of its keys")
    tensor = torch.zeros(
        batch, 64, 64, 8, SPEC.head_dim, dtype=getattr(torch, SPEC.dtype), device="cuda"
    )
    tensor[-1].normal_()
    output, lse = attend(SPEC, Inputs(tensor, tensor, tensor, rpb))
    last = tensor[-1:].clone()
    assert_same((output[-1:], lse[-1:]), attend(SPEC, Inputs(last, last, last, rpb)))
    assert not bool(output[:-1].any())


@pytest.mark.skipif(math.prod(SPEC.kernel_size) > 225, reason="that window takes other blocks")
def test_a_map_with_too_many_tiles_is_refused() -> None:
    # Tiles are at most 8 high.
    inputs = inputs_of(SPEC, (1, 8 * 65535 + 1, 1, 1))
    with pytest.raises(RuntimeError, match="more than 65,535 tiles of a map's axis"):
        attend(SPEC, inputs)


# Devices


@several
def test_it_runs_where_the_tensors_are() -> None:
    inputs = inputs_of(SPEC, (2, 15, 14, 3))
    expected = attend(SPEC, inputs)
    for index in reversed(range(torch.cuda.device_count())):
        there = Inputs(*(None if t is None else t.to(f"cuda:{index}") for t in inputs))
        output = attend(SPEC, there)
        assert {t.device.index for t in output} == {index}
        if torch.cuda.get_device_capability(index) == torch.cuda.get_device_capability(0):
            assert_same([t.cuda(0) for t in output], expected)
        assert torch.cuda.current_device() == 0
