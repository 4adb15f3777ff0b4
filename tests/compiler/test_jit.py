"""A missing kernel is built when it is first called, once, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import natc
from natc import runtime
from natc.checks.inputs import make_inputs
from natc.errors import NatcError, NotCoveredError
from natc.host.detect import detect_host_cpu
from natc.reference import neighborhood_attention
from natc.runtime import jit
from natc.spec import KernelSpec
from natc.store import workspace
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
    kernel = f"na2d_k3_d4_float32_rpb (forward) for {detect_host_cpu().name}"
    before, after = (record.getMessage() for record in caplog.records)
    assert before.startswith(f"natc builds {kernel}, once; this call waits for it")
    assert re.fullmatch(re.escape(f"natc built {kernel} in ") + r"\d+ seconds\.", after)
    exact = neighborhood_attention(*inputs.to_float64()[:3], 3, rpb=rpb.double())
    torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)
    # A gradient builds the gradients; nothing is built twice, in this process or another.
    output.sum().backward()
    natc.na2d(query, key, value, 3, rpb=rpb).sum().backward()
    assert len(caplog.records) == 4 and "(backward)" in caplog.records[-1].getMessage()
    held = {place.path.name: place.source for place in workspace.library_places()}
    assert held["forward"] == held["backward"] == "NATC_JIT"
    assert len(runtime.kernels()) == 2


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
