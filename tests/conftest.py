"""Which folders of tests this machine can run, and which tests are quick."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
LONGEST_FIRST = (
    "compiler",
    "cuda_toolkit",
    "gpu",
    "torch_cpu",
    "cli",
    "vision",
    "trust",
    "tune",
    "pure",
)

# A slow machine is not a failure, and a red run must be red again when it is repeated.
settings.register_profile("natc", deadline=None, derandomize=True)
# Other draws each time, and more of them: pytest -k sweep --hypothesis-profile=natc-long
settings.register_profile("natc-long", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("natc")

# No call of a test may start a build of minutes; tests of NATC_JIT set it themselves.
os.environ["NATC_JIT"] = "off"
# Filling it takes seconds, and most tests have a cache of their own.
os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(platformdirs.user_cache_path("zig")))
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads that spin while they wait would take the core from the tests of the other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@functools.cache
def _missing(folder: str) -> str | None:
    """Return the requirement of a folder that this machine does not meet, or None."""
    if (
        folder in ("torch_cpu", "trust", "gpu", "vision")
        and importlib.util.find_spec("torch") is None
    ):
        return "torch is not installed"
    if folder in ("compiler", "cuda_toolkit") and importlib.util.find_spec("tvm") is None:
        return "apache-tvm is not installed"
    if folder == "cuda_toolkit":
        from natc.errors import CompilerNotFound
        from natc.host.toolchain import find_nvcc

        try:
            find_nvcc()
        except CompilerNotFound as error:
            return str(error)
    if folder == "gpu":
        from natc.host import gpu

        # Most machines have no GPU, and importing torch takes seconds.
        if not gpu.driver().gpus:
            return "torch finds no GPU"
        import torch

        if not torch.cuda.is_available():
            return "torch finds no GPU"
    return None


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    # Ignored as folders, because their modules could not even be imported.
    if collection_path.parent != TESTS or not collection_path.is_dir():
        return None
    return True if _missing(collection_path.name) else None


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        # pytest-xdist would put files of few tests last, and some of these take minutes.
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Folders with long files come first, so that all processes end at about the same time.
        items.sort(key=lambda item: LONGEST_FIRST.index(_folder(item)))
    for item in items:
        if _folder(item) == "pure":
            item.add_marker(pytest.mark.quick)
        # The name of such a test differs from process to process, and pytest-xdist then runs none.
        values = getattr(getattr(item, "callspec", None), "params", {})
        for name, value in values.items():
            if isinstance(value, (set, frozenset)) and str(value) in item.name:
                raise pytest.UsageError(f"{item.nodeid}: {name} is a set; pass a tuple instead.")


@pytest.fixture(autouse=True, scope="module")
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run small tensors on one thread: with two, torch waits longer than it computes.

    Folders with compiled kernels keep all threads. Modules that compute import torch first.
    """
    folder = request.path.relative_to(TESTS).parts[0]
    torch = sys.modules.get("torch")
    if folder not in ("torch_cpu", "cli", "vision") or torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for folder in sorted(path.name for path in TESTS.iterdir() if path.is_dir()):
        reason = _missing(folder)
        if reason:
            terminalreporter.write_line(f"NOT RUN tests/{folder}: {reason}", yellow=True)
    # Tests of damaged files record which file, and how many mutations of it ended in which way.
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "mutations":
                file, ends = value
                counts = ", ".join(f"{count} {end}" for end, count in ends.items())
                terminalreporter.write_line(
                    f"mutations of a {file}: {sum(ends.values())} ({counts})"
                )
