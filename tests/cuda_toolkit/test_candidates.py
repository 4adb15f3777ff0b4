"""Candidates for GPUs: nvcc's report is read, and candidates that spill are dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from natc.compiler.build.resources import Resources, hopeless, resources
from natc.host.c_compiler import run
from natc.host.toolchain import find_nvcc
from natc.targets import Target
from natc.tune.search import builder

H100 = Target.parse("cuda-sm_90")
# 128 sums live at once in a thread, of whose registers a block of 1,024 leaves 64.
SOURCE = """
extern "C" __global__ void __launch_bounds__(%d) sums(float* at) {
  __shared__ float kept[256];
  float found[128];
  #pragma unroll
  for (int i = 0; i < 128; ++i) found[i] = at[i * 1024 + threadIdx.x];
  kept[threadIdx.x %% 256] = at[0];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 128; ++i) at[i * 1024 + threadIdx.x] = found[i] + kept[i];
}
"""


@pytest.mark.parametrize("threads, spills", [(1024, True), (128, False)])
def test_the_report_of_nvcc_is_read(tmp_path: Path, threads: int, spills: bool) -> None:
    text = SOURCE % threads
    source = tmp_path / "sums.cu"
    source.write_text(text)
    words = ("-arch=sm_90", "-Xptxas=-v", "-cubin", "-o", str(tmp_path / "sums.cubin"))
    report = run([find_nvcc(), *words, str(source)], "compiling a test")
    (kernel,) = resources(report, text)
    assert isinstance(kernel, Resources)
    assert (kernel.kernel, kernel.threads, kernel.shared_bytes) == ("sums", threads, 1024)
    assert 40 < kernel.registers <= 65536 // threads or not spills
    assert (kernel.spilled_bytes > 0) == spills
    reason = hopeless([kernel], H100, 227 * 1024)
    assert reason == (f"spills {kernel.spilled_bytes} bytes of registers" if spills else None)


def test_a_candidate_is_compiled_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Resources]] = []

    def judge(kernels: list[Resources], target: Target, most: int, *, may_spill: bool) -> str:
        assert target == H100 and most == 227 * 1024 and not may_spill
        seen.append(kernels)
        return "as the test says"

    monkeypatch.setattr("natc.compiler.build.resources.hopeless", judge)
    names = ("na2d_k3_d8_float32", H100.name)
    useless, features = builder.build(*names, {"threads": 64}, str(tmp_path / "x.so"), "delta")
    assert useless == "as the test says" and (tmp_path / "x.so").stat().st_size > 0
    (kernels,) = seen
    assert kernels and all(kernel.registers > 0 for kernel in kernels)
    assert {kernel.threads for kernel in kernels} == {64}
    assert features["registers"] == max(kernel.registers for kernel in kernels)
