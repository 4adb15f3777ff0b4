"""Predicted times of a CUDA library, from its machine code: `natc show LIBRARY`."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.library_files import library_of
from support.tiny_library import add_library

from natc.cli.views import predicted_times, show_file
from natc.compiler.build.library import build_library
from natc.compiler.gpu_model import disassembly, libraries
from natc.errors import CompilerNotFound
from natc.host import toolchain
from natc.runtime import Library
from natc.spec import KernelSpec
from natc.store.manifest import LibraryTarget, load_manifest
from natc.targets import Target

try:
    toolchain.find_nvcc()
except CompilerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

H100 = Target("cuda", "sm_90")
SPEC = KernelSpec.make(3, head_dim=16, dtype="float16", rpb=True)
OPERATIONS = ("d_rpb", "qk", "sum_rpb")


@pytest.fixture(scope="module")
def manifest_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the operations that take more than sizes and scalars of a window."""
    directory = tmp_path_factory.mktemp("lib")
    return build_library(SPEC, H100, directory, operations=OPERATIONS, untuned=True)


def no_nvcc() -> str:
    raise CompilerNotFound("nvcc was not found; install CUDA.")


def test_each_operation_has_a_time_and_a_limiter_without_nvcc(
    manifest_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toolchain, "find_nvcc", no_nvcc)
    document = show_file.document(str(manifest_path))
    (facts,) = document["predicted_times"]
    assert facts["problem"] is None
    assert (facts["target"], facts["evidence"]) == ("cuda-sm_90", "predicted")
    assert facts["shape"] == [128, 56, 56, 2]
    rows = {row["operation"]: row for row in facts["operations"]}
    assert tuple(rows) == OPERATIONS
    for row in rows.values():
        assert row["problem"] is None and row["limiter"] is not None
    # The logits of qk alone are 14 MB, and what it reads 26 MB: 14 us of an H100's memory.
    assert 14e-6 < rows["qk"]["seconds"] < 1e-3
    show_file.show(document)
    text = capsys.readouterr().out
    assert "predicted times for cuda-sm_90 (H100 SXM 80 GB), input 128x56x56x2" in text
    assert f"by model {facts['model']}, not measured" in text


def predict(manifest_path: Path, **changes: Any) -> list[libraries.PredictedOperation]:
    manifest = load_manifest(manifest_path)
    arguments: dict[str, Any] = {
        "path": library_of(manifest_path),
        "spec": SPEC,
        "target": H100,
        "decisions": {},
        "functions": {"qk": manifest.entries["qk"]["sm_90"]},
        "shape": (2, 9, 9, 1),
        **changes,
    }
    return list(libraries.predict_library(**arguments))


def test_a_library_of_another_natc_has_no_prediction(manifest_path: Path) -> None:
    """Host code of this natc must not launch kernels that take other parameters."""
    assert predict(manifest_path)[0].seconds is not None
    (without_bias,) = predict(manifest_path, spec=replace(SPEC, rpb=False))
    assert without_bias.seconds is None and "another natc built it" in str(without_bias.problem)
    (absent,) = predict(manifest_path, functions={"qk": "na2d_elsewhere"})
    assert absent.seconds is None and "no machine code of na2d_elsewhere" in str(absent.problem)


def shown(manifest_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    (facts,) = predicted_times.of_library(Library(load_manifest(manifest_path), manifest_path))
    predicted_times.show(facts)
    return capsys.readouterr().out


def test_what_cannot_be_read_is_said_in_a_line(
    manifest_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A library without machine code, one for a GPU without figures, and no cuobjdump."""
    add = functools.partial(add_library, tmp_path)
    empty = shown(add(target=LibraryTarget("cuda", ("sm_90",))), capsys)
    assert empty.startswith("no predicted times for cuda-sm_90: ")
    unknown = shown(add(target=LibraryTarget("cuda", ("sm_87",))), capsys)
    assert unknown.startswith("no predicted times for cuda-sm_87: architecture sm_87 has no")
    monkeypatch.setattr(disassembly.importlib.metadata, "files", lambda name: None)
    monkeypatch.setattr(disassembly.shutil, "which", lambda name: None)
    without = shown(manifest_path, capsys)
    assert without.startswith("no predicted times for cuda-sm_90: cuobjdump was not found")
    assert {text.count("\n") for text in (empty, unknown, without)} == {1}
