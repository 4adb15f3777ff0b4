"""The benchmark of this CPU: percent of peak, and networks compared round by round."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_script import ROOT, benchmark
from support.built_kernels import build_part

from natc.bench.times import NAT_LEVELS
from natc.spec import KernelSpec


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("cpu_benchmark", ROOT / "benchmarks" / "cpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_level_has_its_error_and_share_of_the_peak(tmp_path: Path) -> None:
    build_part(KernelSpec.make(7, rpb=True), ["forward"], tmp_path)
    done = benchmark(
        "cpu.py", "--parts", "alone", "--seconds", "0.01", "--json", libraries=tmp_path
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["threads"] == 1
    assert [tuple(row["shape"]) for row in document["alone"]] == list(NAT_LEVELS)
    for row in document["alone"]:
        assert 0 < row["error"] < 1e-5 and row["samples"] >= 9
        # Two for each query, key of its window and channel.
        assert row["multiply_adds"] == 2 * 49 * 32 * row["shape"][1] ** 2 * row["shape"][3]
        share = row["multiply_adds"] / row["seconds"] / row["peak_multiply_adds_per_second"]
        assert row["of_peak"] == pytest.approx(share)


def test_networks_are_compared_round_by_round(script: Any) -> None:
    # The machine is twice as slow in every other round, for both.
    theirs = [1.0, 2.0] * 20
    found = script.compared([0.9 * time for time in theirs], theirs)
    assert found["median"] == found["low"] == found["high"] == pytest.approx(0.9)
    assert found["rounds_ahead"] == 1
    mixed = script.compared([1.5, 0.5, 1.5, 0.5, 0.5], [1.0] * 5)
    assert mixed["median"] == 0.5 and mixed["rounds_ahead"] == pytest.approx(0.6)


def test_every_shape_is_one_that_kernels_take(script: Any) -> None:
    for shape, size, dtype in script.SHAPES:
        rank = len(shape) - 3
        spec = KernelSpec.make(size, rank=rank, head_dim=shape[-1], dtype=dtype, rpb=True)
        assert spec.rank == rank and min(shape[1 : 1 + rank]) >= size
    assert script.multiply_adds((2, 5, 5, 3, 16), 3) == 2 * 2 * 25 * 3 * 16 * 9
    assert script.multiply_adds((1, 100, 2, 32), 63) == 2 * 100 * 2 * 32 * 63
