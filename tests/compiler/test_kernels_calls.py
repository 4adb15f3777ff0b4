"""Calling kernels for this CPU: bits, threads, processes, tracing, and wrong arguments."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.built_kernels import BuiltKernels
from support.forward_checks import assert_same, call_forward
from support.fresh_process import run_fresh
from support.layouts import misaligned, noncontiguous
from support.library_files import library_of

import natc
from natc.checks.guarded import scalars
from natc.checks.inputs import Inputs, make_inputs
from natc.dispatch import launch
from natc.errors import ArgumentError
from natc.functional import na2d_qkvpacked
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store.manifest import function_name

SPEC = KernelSpec.parse("na2d_k7_d32_float32_rpb")
SHAPE = (2, 15, 14, 3, 32)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def attend(inputs: Inputs, **options: Any) -> Any:
    return natc.na2d(*inputs[:3], 7, rpb=inputs.rpb, return_lse=True, **options)


@pytest.fixture
def inputs(built: BuiltKernels) -> Inputs:
    built.manifest(SPEC)
    return make_inputs(SHAPE, kernel_size=7)


def test_threads_of_python_call_at_once(inputs: Inputs) -> None:
    different = [make_inputs(SHAPE, kernel_size=7, seed=seed) for seed in range(4)]
    expected = [attend(entry) for entry in different]
    barrier = threading.Barrier(len(different))

    def work(index: int) -> None:
        barrier.wait()
        for _ in range(20):
            assert_same(attend(different[index]), expected[index])

    with ThreadPoolExecutor(len(different)) as threads:
        # Raises the first error of a thread.
        list(threads.map(work, range(len(different))))


def test_any_layout_and_alignment(inputs: Inputs) -> None:
    expected = attend(inputs)
    for change in (misaligned, noncontiguous):
        for index in range(4):
            changed = list(inputs)
            changed[index] = change(inputs[index])
            assert_same(attend(Inputs(*changed)), expected)
    heads_first = [t.transpose(1, 3).contiguous().transpose(1, 3) for t in inputs[:3]]
    assert_same(attend(Inputs(*heads_first, inputs.rpb)), expected)
    shared = Inputs(inputs.query, inputs.query, inputs.query, inputs.rpb)
    copies = Inputs(*(inputs.query.clone() for _ in range(3)), inputs.rpb)
    assert_same(attend(shared), attend(copies))


@pytest.mark.parametrize("dilation", [2**31 - 1, 2**31, 2**32 + 1, 2**40, (1, 2**33)], ids=str)
def test_a_dilation_beyond_32_bits_is_one_beyond_the_map(inputs: Inputs, dilation: Any) -> None:
    wide = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    narrow = [min(dilation, 15) for dilation in wide]
    assert_same(attend(inputs, dilation=dilation), attend(inputs, dilation=narrow))


def test_a_call_beyond_32_bits_is_made_in_parts(
    built: BuiltKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.manifest(SPEC)
    inputs = make_inputs((5, *SHAPE[1:]), kernel_size=7)
    expected = attend(inputs)
    entry = inputs.query[0].numel()
    sizes: list[int] = []
    launch_one = launch.launch

    def counting(kernel: Any, operation: str, inputs: Any, *arguments: Any) -> None:
        sizes.append(inputs[0].shape[0])
        launch_one(kernel, operation, inputs, *arguments)

    monkeypatch.setattr(launch, "launch", counting)
    monkeypatch.setattr(launch, "MOST_ELEMENTS", 2 * entry)
    assert_same(attend(inputs), expected)
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(launch, "MOST_ELEMENTS", entry // SHAPE[-2] - 1)
    with pytest.raises(ArgumentError, match=r"query has shape .*elements in one head"):
        attend(inputs)


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Each launch of a kernel that copies, in order: its operation, and entries of the batch."""
    launched: list[tuple[str, int]] = []
    few_entries, on_cpu = launch._few_entries, launch.launch_on_cpu
    operations = [""]

    def noting(operation: str, *arguments: Any) -> Any:
        for part in few_entries(operation, *arguments):
            operations.append(operation)
            yield part

    def counting(kernel: Any, arguments: tuple[Any, ...]) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        assert not any(t.data_ptr() % kernel.alignment for t in tensors)
        launched.append((operations.pop() if len(operations) > 1 else "", len(arguments[0])))
        on_cpu(kernel, arguments)

    monkeypatch.setattr(launch, "COPIED_TOGETHER", 2**30)
    monkeypatch.setattr(launch, "_few_entries", noting)
    monkeypatch.setattr(launch, "launch_on_cpu", counting)
    return launched


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_lse", [False, True])
def test_a_large_batch_is_given_a_few_entries_at_a_time(
    built: BuiltKernels,
    monkeypatch: pytest.MonkeyPatch,
    entries: list[tuple[str, int]],
    packed: bool,
    with_lse: bool,
) -> None:
    built.manifest(SPEC)
    inputs = make_inputs((19, *SHAPE[1:]), kernel_size=7)
    qkv = torch.stack(inputs[:3], -3)

    def results() -> tuple[torch.Tensor, ...]:
        options: dict[str, Any] = {"rpb": inputs.rpb, "return_lse": with_lse}
        if packed:
            result = na2d_qkvpacked(qkv, 7, **options)
        else:
            result = natc.na2d(*inputs[:3], 7, **options)
        return result if with_lse else (result,)

    expected = results()
    assert [size for _, size in entries] == [19]
    entries.clear()
    monkeypatch.setattr(launch, "COPIED_TOGETHER", 3 * inputs.query[0].numel())
    assert_same(results(), expected)
    # An entry of lse is smaller than the alignment of tensors; 8 entries are a multiple of it.
    sizes = [8, 8, 3] if with_lse else [3, 3, 3, 3, 3, 3, 1]
    name = "forward" + "_lse" * with_lse + "_packed" * packed
    assert entries == [(name, size) for size in sizes]


def test_gradients_of_a_large_batch_are_made_a_few_entries_at_a_time(
    built: BuiltKernels, monkeypatch: pytest.MonkeyPatch, entries: list[tuple[str, int]]
) -> None:
    built.manifest(SPEC)
    inputs = make_inputs((19, *SHAPE[1:]), kernel_size=7, requires_grad=True)
    d_output = torch.randn(inputs.query.shape)

    def gradients() -> tuple[torch.Tensor, ...]:
        # A causal axis: a kernel for each gradient.
        output = natc.na2d(*inputs[:3], 7, rpb=inputs.rpb, is_causal=(False, True))
        return torch.autograd.grad(output, inputs, d_output)

    expected = gradients()
    entries.clear()
    monkeypatch.setattr(launch, "COPIED_TOGETHER", 3 * inputs.query[0].numel())
    assert_same(gradients(), expected)
    # Sums over the batch, and what copies nothing, are made at once.
    assert sorted(entries) == sorted(
        [("", 19), ("", 19)]
        + [
            (name, size)
            for name in ("forward_lse", "d_query", "d_key", "d_value")
            for size in (8, 8, 3)
        ]
    )


def test_a_compiled_graph_calls_the_kernel(inputs: Inputs) -> None:
    torch._dynamo.reset()

    def block(*tensors: torch.Tensor) -> torch.Tensor:
        output, lse = attend(Inputs(*tensors), dilation=2)
        return torch.relu(output) + lse[..., None]

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for height in (9, 15):
            here = Inputs(*(t[:, :height] for t in inputs[:3]), inputs.rpb)
            torch.testing.assert_close(compiled(*here), block(*here), rtol=0, atol=0)


# Wrong arguments of the function itself end in an error, not in a crash


WRONG = {
    "a float64 query": lambda a: [a[0].double(), *a[1:]],
    "a key of another shape": lambda a: [a[0], a[1][:, :-1].contiguous(), *a[2:]],
    "a value with other channels": lambda a: [*a[:2], a[2][..., :16].contiguous(), *a[3:]],
    "a query with 4 axes": lambda a: [a[0][0], *a[1:]],
    "an rpb of another window": lambda a: [*a[:3], a[3][:, 1:].contiguous(), *a[4:]],
    "an rpb of too few heads": lambda a: [*a[:3], a[3][1:].contiguous(), *a[4:]],
    "an output that is not compact": lambda a: [*a[:4], a[4].transpose(1, 2), *a[5:]],
    "a smaller output": lambda a: [*a[:4], a[4][:1], *a[5:]],
    "no rpb": lambda a: [*a[:3], *a[4:]],
    "too few arguments": lambda a: a[:-1],
    "too many arguments": lambda a: [*a, 1],
    "a text for scale": lambda a: [*a[:5], "1", *a[6:]],
    "a float dilation": lambda a: [*a[:6], 1.5, *a[7:]],
    "key and value of other heads": lambda a: [*a[:2], a[2][..., :1, :].contiguous(), *a[3:]],
    "None for key": lambda a: [a[0], None, *a[2:]],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_function_itself_checks_its_arguments(
    built: BuiltKernels, inputs: Inputs, wrong: str
) -> None:
    function = built.function(SPEC)
    arguments = [*inputs, torch.empty_like(inputs.query), *scalars(inputs, 0.2)]
    function(*arguments)
    with pytest.raises((TypeError, ValueError, RuntimeError)) as error:
        function(*WRONG[wrong](arguments))
    assert len(str(error.value)) > 20


# In processes of their own


@LINUX
def test_a_kernel_runs_without_the_compiler(built: BuiltKernels) -> None:
    built.manifest(SPEC)
    program = """
import sys
# As if it were not installed.
sys.modules["tvm"] = None
import torch, natc
from natc.reference import neighborhood_attention
query, key, value = torch.randn(3, 1, 9, 8, 2, 32)
rpb = torch.randn(2, 13, 13)
found = natc.na2d(query, key, value, 7, rpb=rpb)
torch.testing.assert_close(found, neighborhood_attention(query, key, value, 7, rpb=rpb))
print([name for name in sys.modules if name.split(".")[0] == "tvm"])
maps = open("/proc/self/maps").read()
print("na2d_k7_d32_float32_rpb" in maps, "libtvm_ffi" in maps)
print("libtvm_runtime" in maps, "libtvm_compiler" in maps, "libtvm.so" in maps)
"""
    assert run_fresh(program).splitlines() == ["['tvm']", "True True", "False False False"]


@LINUX
def test_torchs_number_of_threads_holds_in_every_thread(built: BuiltKernels) -> None:
    built.manifest(SPEC)
    program = """
import os, threading
import torch, natc
query, key, value = torch.randn(3, 2, 32, 32, 4, 32)
rpb = torch.randn(4, 13, 13)
tasks = lambda: set(os.listdir("/proc/self/task"))
started = []
def call():
    before = tasks()
    for _ in range(3):
        natc.na2d(query, key, value, 7, rpb=rpb)
    started.append(len(tasks() - before))
torch.set_num_threads(1)
call()
other = threading.Thread(target=call)
other.start()
other.join()
torch.set_num_threads(3)
call()
print(started)
"""
    # OpenMP would by itself start one more for a number of 2.
    assert run_fresh(program, OMP_NUM_THREADS="2").strip() == "[0, 0, 2]"


@LINUX
def test_a_forked_process_calls_on_one_thread(built: BuiltKernels) -> None:
    """As the workers of torch's data loader do; more threads no OpenMP survives."""
    built.manifest(SPEC)
    program = """
import os, torch, natc
query, key, value = torch.randn(3, 2, 32, 32, 4, 32)
rpb = torch.randn(4, 13, 13)
torch.set_num_threads(2)
expected = natc.na2d(query, key, value, 7, rpb=rpb)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(not torch.equal(natc.na2d(query, key, value, 7, rpb=rpb), expected))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_fresh(program).strip() == "0"


def test_a_process_without_torch_uses_threads_of_its_own(
    built: BuiltKernels, tmp_path: Path
) -> None:
    name = function_name(SPEC, "forward_lse", detect_host_cpu())
    library = library_of(built.manifest(SPEC))
    inputs = make_inputs(SHAPE, kernel_size=7)
    expected = call_forward(
        built.function(SPEC, "forward_lse"), inputs, scale=0.2, dilation=(2, 1), with_lse=True
    )
    names = ("query", "key", "value", "rpb")
    np.savez(tmp_path / "in.npz", **{n: t.numpy() for n, t in zip(names, inputs)})
    program = f"""
import sys
# If torch is installed, tvm_ffi imports it, for its tensors.
sys.modules["torch"] = None
import numpy as np, tvm_ffi
def aligned(array):
    buffer = np.zeros(array.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    view = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view
given = np.load({str(tmp_path / "in.npz")!r})
arrays = [aligned(given[name]) for name in {names!r}]
output, lse = aligned(arrays[0] * np.nan), aligned(arrays[0][..., 0] * np.nan)
function = tvm_ffi.load_module({str(library)!r})[{name!r}]
tensors = [tvm_ffi.from_dlpack(a) for a in (*arrays, output, lse)]
function(*tensors, *{scalars(inputs, 0.2, (2, 1))!r})
np.savez({str(tmp_path / "out.npz")!r}, output=output, lse=lse)
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print(any(name in maps for name in ("libgomp", "libomp", "libtorch")))
"""
    assert run_fresh(program).strip() == "False"
    arrays = np.load(tmp_path / "out.npz")
    assert torch.equal(torch.from_numpy(arrays["output"]), expected[0])
    assert torch.equal(torch.from_numpy(arrays["lse"]), expected[1])
