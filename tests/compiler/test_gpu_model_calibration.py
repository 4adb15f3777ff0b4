"""The model of a GPU beside times that an H100 measured, from the committed work."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from natc.compiler.gpu_model.calibrated import COEFFICIENTS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_model.py"
LEVEL = "128x56x56x2x32"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_model_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_one_kernel_predicts_another(script: ModuleType) -> None:
    """Calibrated on bfloat16 alone, float16: its ranks, its errors, and its fastest candidate."""
    measured = [each for each in script.samples() if each.shape == LEVEL]
    others = [each for each in measured if "bfloat16" in each.spec]
    own = [each for each in measured if "_float16" in each.spec]
    assert len(own) == 119 and len(others) >= 14
    coefficients = script.calibrate(others)
    pairs = [(each, script.predicted(each, coefficients)) for each in own]
    figures = {**script.judge(pairs), **script.best_in_top(pairs)}
    assert figures["rank_correlation"] >= 0.8
    assert figures["median_error"] <= 0.25
    assert figures["place_of_the_best"] <= 8


def test_the_coefficients_in_use_are_those_of_the_script(script: ModuleType) -> None:
    fitted = script.calibrate(script.samples())
    for name in script.BOUNDS:
        assert getattr(COEFFICIENTS, name) == pytest.approx(getattr(fitted, name), rel=0.05), name


def test_the_saved_result_is_of_these_candidates(script: ModuleType) -> None:
    result = json.loads(script.RESULT.read_text())
    measured = script.samples()
    assert len(result["points"]) == len(measured)
    assert result["evidence"].startswith("predicted")
    times = sorted(round(each.seconds * 1e6, 1) for each in measured)
    assert sorted(point["measured_us"] for point in result["points"]) == times


def test_a_candidate_without_its_work_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    lines = script.WORK.read_text().splitlines()
    some = tmp_path / "work.jsonl"
    some.write_text("\n".join(lines[:5]))
    assert len(script.samples(some)) == 5
