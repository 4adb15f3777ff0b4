from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.builder_double import Builder
from support.command_line import Natc, in_this_process
from support.own_folders import unset_variables, use_own_folders

from natc import runtime
from natc.host import gpu


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a machine with nothing tuned or built, and no GPU; no call builds."""
    unset_variables(monkeypatch)
    monkeypatch.setenv("NATC_JIT", "readonly")
    use_own_folders(tmp_path, monkeypatch)
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver(None, ()))
    runtime.clear()
    return tmp_path


@pytest.fixture
def natc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Natc:
    """Run the command line in this process, as `natc("tune", "--kernel", "7")`."""
    return in_this_process(capsys, monkeypatch)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    """What `natc build` calls in the compiler's place, which then seems to be installed."""
    double = Builder()
    module: Any = ModuleType("natc.compiler.build")
    module.build_library = double
    monkeypatch.setitem(sys.modules, "natc.compiler.build", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    return double
