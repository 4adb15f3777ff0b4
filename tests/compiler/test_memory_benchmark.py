"""Forward and backward take memory for tokens, not for their windows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_script import benchmark

from natc.compiler.build import build_library
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec

# A call keeps some MiB for its copies, whatever the batch.
PROBLEM = ["--batch", "16", "--map", "56", "--kernel", "7", "--no-scan", "--json"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is read from Linux's /proc"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("lib")
    build_library(KernelSpec.make(7, rpb=True), detect_host_cpu(), directory)
    done = benchmark("memory.py", *PROBLEM, libraries=directory)
    assert done.returncode == 0, done.stderr
    return {row["variant"]: row for row in json.loads(done.stdout)["rows"]}


def test_fused_gradients_take_little_beside_their_results(rows: dict[str, Any]) -> None:
    fused = rows["fused"]
    # One float32 for each query, head and tap.
    attn_bytes = fused["tokens"] * fused["heads"] * 49 * 4
    assert 0 < fused["peak_bytes"] - fused["result_bytes"] < attn_bytes / 4


def test_memory_that_the_unfused_operators_keep_is_reported(rows: dict[str, Any]) -> None:
    unfused = rows["unfused"]
    attn_bytes = unfused["tokens"] * unfused["heads"] * 49 * 4
    assert unfused["peak_bytes"] - unfused["result_bytes"] > attn_bytes / 2
    assert unfused["peak_bytes"] > rows["fused"]["peak_bytes"]


def test_without_kernels_it_says_how_to_build_them(tmp_path: Path) -> None:
    done = benchmark("memory.py", *PROBLEM, libraries=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "natc build --kernel 7 --target llvm" in done.stderr
    assert "Traceback" not in done.stderr
