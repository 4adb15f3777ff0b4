"""Which folders of tests this machine can run; each is named by what its tests need."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent

# A slow machine is not a failure, and a red run must be red again when it is repeated.
settings.register_profile("natc", deadline=None, derandomize=True)
# Other draws each time, and more of them: pytest -k sweep --hypothesis-profile=natc-long
settings.register_profile("natc-long", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("natc")

# What a test calls must not start a build of minutes; tests of NATC_JIT set it themselves.
os.environ["NATC_JIT"] = "off"

_not_run: dict[str, str] = {}


def _missing(folder: str) -> str | None:
    """Say what the folder's tests need and this machine lacks; None if nothing."""
    if folder in ("torch_cpu", "gpu") and importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if folder in ("compiler", "cuda_toolkit") and importlib.util.find_spec("tvm") is None:
        return "apache-tvm is not installed"
    if folder == "cuda_toolkit":
        from natc.build.c_compiler import find_nvcc
        from natc.errors import CompilerNotFound

        try:
            find_nvcc()
        except CompilerNotFound as error:
            return str(error)
    if folder == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "torch finds no GPU"
    return None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    # Ignored as folders, because their modules could not even be imported.
    if collection_path.parent != TESTS or not collection_path.is_dir():
        return None
    reason = _missing(collection_path.name)
    if reason is None:
        return None
    _not_run[collection_path.name] = reason
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for folder, reason in sorted(_not_run.items()):
        terminalreporter.write_line(f"NOT RUN tests/{folder}: {reason}", yellow=True)
