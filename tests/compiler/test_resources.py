"""Registers, shared memory and threads of kernels, read from the compiler's report."""

from __future__ import annotations

import dataclasses

import pytest
from support.fresh_process import run_fresh

from natc.compiler.build.lower import most_shared_bytes
from natc.compiler.build.resources import Resources, hopeless, measured, resources
from natc.operations import OPERATIONS
from natc.spec import KernelSpec
from natc.store.schedules import joined, near, own_decisions
from natc.targets import Target

H100 = Target.parse("cuda-sm_90")
SHARED = most_shared_bytes(H100)

# As nvcc 13.0 says it.
SAID = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'na2d_k7_kernel_1' for 'sm_90'
ptxas info    : Function properties for na2d_k7_kernel_1
    144 bytes stack frame, 32 bytes spill stores, 48 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 144 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 93.110 ms
ptxas info    : Compiling entry function 'na2d_k7_kernel' for 'sm_90'
ptxas info    : Function properties for na2d_k7_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""  # noqa: E501
SOURCE = """
extern "C" __global__ void __launch_bounds__(256) na2d_k7_kernel(half* a);
extern "C" __global__ void __launch_bounds__(256) na2d_k7_kernel(half* a) {
extern "C" __global__ void __launch_bounds__(128, 4) na2d_k7_kernel_1(half* a) {
"""


def test_the_report_of_the_compiler_is_read() -> None:
    assert resources(SAID, SOURCE) == [
        Resources(
            kernel="na2d_k7_kernel_1",
            registers=128,
            shared_bytes=4096,
            stack_bytes=144,
            spilled_bytes=32,
            threads=128,
        ),
        Resources(kernel="na2d_k7_kernel", registers=40, threads=256),
    ]
    assert resources("nvcc said nothing") == []


def test_a_kernel_beside_one_for_tensor_cores_is_not_measured() -> None:
    """It spills as much in every candidate, and no call of a search launches it."""
    both = resources(SAID, SOURCE)
    assert measured(both, SOURCE) == both
    body = "  natc_mma_f16(a, 1, 2, 3, 4, 5, 6);\n}\n"
    last = SOURCE + body
    assert [kernel.kernel for kernel in measured(both, last)] == ["na2d_k7_kernel_1"]
    declared, first, second = SOURCE.strip().splitlines()
    source = "\n".join([declared, first, body, second, "}"])
    assert [kernel.kernel for kernel in measured(both, source)] == ["na2d_k7_kernel"]


@pytest.mark.parametrize(
    "kernel, message",
    [
        (Resources(kernel="k", registers=255, threads=256), None),
        (Resources(kernel="k", registers=64, threads=1024), None),
        (Resources(kernel="k", registers=32, threads=128, stack_bytes=400), None),
        (Resources(kernel="k", spilled_bytes=4), "spills 4 bytes"),
        (Resources(kernel="k", registers=65, threads=1024), "takes 73728 registers"),
        (Resources(kernel="k", registers=32, threads=1056), "has 1056 threads"),
        (Resources(kernel="k", shared_bytes=SHARED), None),
        (Resources(kernel="k", shared_bytes=SHARED + 1), f"takes {SHARED + 1} bytes of shared"),
    ],
    ids=["many", "full", "stack", "spills", "registers", "threads", "shared", "more-shared"],
)
def test_kernels_that_cannot_run_or_cannot_be_fast_are_dropped(
    kernel: Resources, message: str | None
) -> None:
    fine = Resources(kernel="fine", registers=32, threads=128)
    reason = hopeless([fine, kernel], H100, SHARED)
    assert reason is None if message is None else reason is not None and reason.startswith(message)
    if kernel.spilled_bytes:
        assert hopeless([fine, kernel], H100, SHARED, may_spill=True) is None


def test_decisions_of_operations_are_kept_apart() -> None:
    together = joined({"lanes": 4}, "forward_lse") | joined({"threads": 64}, "d_query")
    assert together == {"lanes": 4, "d_query.threads": 64}
    for name, operation in OPERATIONS.items():
        expected = {"lanes": 4} if operation.family == "forward" else {}
        expected = {"threads": 64} if name == "d_query" else expected
        assert own_decisions(together, name) == expected


def test_schedules_of_near_kernels_come_nearest_first() -> None:
    spec = KernelSpec.make(7, rpb=True, dtype="float16")
    specs = list(near(spec))
    assert specs[:2] == [spec, dataclasses.replace(spec, rpb=False)]
    assert specs[2:4] == [dataclasses.replace(kernel, dtype="bfloat16") for kernel in specs[:2]]
    distances = [abs(kernel.kernel_size[0] - 7) for kernel in specs]
    assert distances == sorted(distances) and len(set(specs)) == len(specs) == 36
    # Neither another element size nor a window that there is not.
    short = list(near(KernelSpec.make((1, 63))))
    assert {(kernel.dtype, kernel.kernel_size) for kernel in short} == {("float32", (1, 63))}


# As if the table of architectures had this line more, before anything of natc reads it.
ONE_LINE_MORE = """
import sys, tempfile, types
from pathlib import Path

import natc

path = Path(natc.__file__).with_name("targets.py")
line = '    Arch("cuda", "sm_120", shared_kib=99),\\n'
assert path.read_text().count(line) == 1
table = path.read_text().replace(line, line + line.replace("sm_120", "sm_121"))
targets = sys.modules["natc.targets"] = types.ModuleType("natc.targets")
exec(compile(table, str(path), "exec"), targets.__dict__)

from natc.compiler.build.cuda import generate
from natc.compiler.build.lower import compiler_target, most_shared_bytes
from natc.spec import KernelSpec

target = targets.Target.parse("cuda-sm_121")
print(compiler_target(target).attrs["arch"], most_shared_bytes(target) // 1024)
print(targets.cuda_target_for((12, 1)), targets.Target.parse("cuda-sm_120").runs_on(target))
spec = KernelSpec.make(3, head_dim=16, dtype="float16")
with tempfile.TemporaryDirectory() as folder:
    source = generate(spec, target, {}, Path(folder), ["forward"]).source
print("na2d_k3_d16_float16_forward_sm_121_" in source)
"""


def test_an_architecture_is_one_line_of_one_table() -> None:
    lines = run_fresh(ONE_LINE_MORE).splitlines()
    assert lines == ["sm_121 99", "cuda-sm_121 True", "True"]
