"""A missing kernel is built when it is first called, once, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.library_files import add_code, library_of

import natc
from natc import runtime
from natc.checks.inputs import make_inputs
from natc.compiler import first_call
from natc.compiler.build import build_library
from natc.errors import NatcError, NotCoveredError
from natc.host.detect import detect_host_cpu
from natc.operations import operations_called, operations_of
from natc.reference import neighborhood_attention
from natc.runtime import jit
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.manifest import LibraryTarget
from natc.targets import Target

CALL = """
import sys, torch, natc
query = torch.randn(1, 5, 5, 1, 4)
natc.na2d(query, query, query, 3)
assert "tvm" not in sys.modules, "the compiler runs in this process"
"""


@pytest.fixture(autouse=True)
def on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_JIT", "on")
    monkeypatch.setenv("NATC_LIB_PATH", "")
    jit._failures.clear()
    runtime.clear()


def test_a_call_builds_its_kernel_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "_LONG", 0.01)
    inputs = make_inputs((1, 6, 5, 2, 4), kernel_size=3, requires_grad=True)
    query, key, value, rpb = inputs
    output = natc.na2d(query, key, value, 3, rpb=rpb)
    kernel = f"na2d_k3_d4_float32_rpb (forward_lse) for {detect_host_cpu().name}"
    before, after = (record.getMessage() for record in caplog.records)
    assert before.startswith(f"natc builds {kernel}, once; this call waits for it")
    assert re.fullmatch(re.escape(f"natc built {kernel} in ") + r"\d+ seconds\.", after)
    exact = neighborhood_attention(*inputs.to_float64()[:3], 3, rpb=rpb.double())
    torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)
    # The gradients were built meanwhile; nothing is built twice, in this process or another.
    output.sum().backward()
    natc.na2d(query, key, value, 3, rpb=rpb).sum().backward()
    assert len(caplog.records) == 2
    # A call without gradients builds its own operation, and leaves the first library alone.
    first = {library.path for library in runtime.kernels()}
    with torch.no_grad():
        natc.na2d(query, key, value, 3, rpb=rpb)
    assert len(caplog.records) == 4 and "(forward)" in caplog.records[-1].getMessage()
    held = {place.path.name: place.source for place in workspace.library_places()}
    assert {"NATC_JIT"} == {held[name] for name in ("forward", "forward_lse", "backward")}
    libraries = runtime.kernels()
    assert first < {library.path for library in libraries} and len(libraries) == 3
    backward = operations_of(libraries[0].spec, ("backward",))
    assert {tuple(library.manifest.entries) for library in libraries} == {
        ("forward",), ("forward_lse",), backward
    }  # fmt: skip


def test_gradients_are_built_by_their_call_if_the_build_before_it_fails(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = jit._start

    def start_or_fail(*words: Any, **more: Any) -> subprocess.Popen[bytes]:
        if first_call.IF_MISSING in words:
            return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
        return start(*words, **more)

    monkeypatch.setattr(jit, "_start", start_or_fail)
    query = torch.randn(1, 5, 5, 1, 4, requires_grad=True)
    natc.na2d(query, query, query, 3).sum().backward()
    texts = [record.getMessage() for record in caplog.records]
    groups = [re.split("[()]", text)[1] for text in texts if text.startswith("natc builds")]
    assert groups == ["forward_lse", "backward"]


@pytest.mark.parametrize("held", ["nothing", "a part", "everything"])
def test_gradients_that_are_there_are_not_built_ahead(
    held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, host = KernelSpec.make(3, head_dim=4), detect_host_cpu()
    directory = workspace.jit_dir("backward")
    target = LibraryTarget("llvm", (host.arch,))
    operations = operations_of(spec, ("backward",))
    if held != "nothing":
        held_operations = operations[:1] if held == "a part" else operations
        add_code(directory, b"code", spec, target, held_operations)
    built: list[Path] = []
    monkeypatch.setattr(
        "natc.compiler.build.build_library", lambda *words, **more: built.append(words[2])
    )
    words = [spec.name, host.name, "backward"]
    assert first_call.main([*words, first_call.IF_MISSING]) == 0
    assert built == ([] if held == "everything" else [directory])
    # A call has asked for it under the same lock, and found it missing.
    assert first_call.main(words) == 0 and len(built) == (1 if held == "everything" else 2)


@pytest.mark.parametrize("group", ["forward_lse", "backward", "unfused"])
def test_a_first_call_builds_the_same_bytes_as_a_whole_compiler(group: str, place: Path) -> None:
    """It keeps torch out of its process, and leaves out parts of TVM; this process has all."""
    spec, host = KernelSpec.make(3, head_dim=8, rpb=True), detect_host_cpu()
    words = [sys.executable, "-m", "natc.compiler.first_call", spec.name, host.name, group]
    subprocess.run(words, check=True, timeout=300)
    (fast,) = workspace.jit_dir(group).glob("*.so")
    operations = operations_called(spec, group)
    manifest = build_library(spec, host, place, operations=operations, portable=False)
    assert "torch" in sys.modules and "tvm.relax.transform" in sys.modules
    assert library_of(manifest).read_bytes() == fast.read_bytes()


def test_a_process_that_builds_loads_neither_torch_nor_what_it_does_not_need() -> None:
    program = (
        "import sys; from natc.compiler.import_tvm import import_tvm_alone; "
        "import_tvm_alone(sys.argv[1] or None); import natc.compiler.build.lower; "
        "print(*(n in sys.modules for n in ('torch', 'tvm.relax.op', 'tvm.backend.cuda.op')))"
    )
    loaded = {
        kind: subprocess.check_output([sys.executable, "-c", program, kind], text=True).split()
        for kind in ("llvm", "")
    }
    assert loaded == {"llvm": ["False"] * 3, "": ["False", "True", "True"]}


def test_processes_that_call_at_once_build_once() -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", CALL], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert sum("natc builds" in text for text in errors) == 1, errors


def test_readonly_uses_built_kernels_and_off_ignores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(1, 5, 5, 1, 4)
    monkeypatch.setenv("NATC_JIT", "readonly")
    with pytest.raises(NotCoveredError, match="NATC_JIT is readonly"):
        natc.na2d(query, query, query, 3)
    done = subprocess.run(
        [sys.executable, "-c", CALL], env={**os.environ, "NATC_JIT": "on"}, timeout=300
    )
    assert done.returncode == 0
    runtime.clear()
    natc.na2d(query, query, query, 3)
    monkeypatch.setenv("NATC_JIT", "off")
    runtime.clear()
    with pytest.raises(NotCoveredError, match="NATC_JIT is off"):
        natc.na2d(query, query, query, 3)


def test_a_failed_build_is_told_once_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A directory that is a file: the build cannot write there.
    blocked = workspace.jit_dir("forward")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("")
    query = torch.randn(1, 5, 5, 1, 4)
    for _ in range(2):
        runtime.clear()
        with pytest.raises(NotCoveredError, match="a call does not build it: building it failed"):
            natc.na2d(query, query, query, 3)
    assert len(caplog.records) == 1 and "natc could not build" in caplog.text


def test_an_impossible_build_is_explained() -> None:
    h100 = Target.parse("cuda-sm_90")
    double = KernelSpec.make(3, dtype="float64")
    assert jit.obstacle(double, h100, "forward") == "there are no float64 kernels for cuda"
    assert jit.obstacle(double, detect_host_cpu(), "forward") is None
    unequal = KernelSpec.make(3, value_dim=8)
    assert "has no qk" in str(jit.obstacle(unequal, h100, "qk"))


def test_a_wrong_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_JIT", "sometimes")
    with pytest.raises(NatcError, match="NATC_JIT is 'sometimes'"):
        jit.mode()
