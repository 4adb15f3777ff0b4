"""Fixtures: a place for libraries, libraries compiled from C, and doubles of kernels.

No test depends on earlier tests in its process: random numbers, libraries that were loaded,
and what torch.compile keeps are its own or its file's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.c_library import SPECS, LibraryDirectory, compile_c
from support.kernel_double import Doubles

from natc import runtime
from natc.runtime import registry


@pytest.fixture(autouse=True)
def _the_same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _nothing_of_other_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Find no library that this file has not made, and forget what torch.compile compiled.

    torch compiles a function, such as a module's forward, for a few different calls only.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        for variable in ("NATC_LIB_PATH", "NATC_STRICT"):
            patch.delenv(variable, raising=False)
        runtime.clear()
        yield
        runtime.clear()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("compiled")
    return {rpb: compile_c(spec, folder / f"{spec.name}.so") for rpb, spec in SPECS.items()}


@pytest.fixture
def libraries(
    compiled: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LibraryDirectory]:
    """An empty library directory; natc searches no other directory but an empty cache."""
    directory = LibraryDirectory(tmp_path / "lib", compiled)
    monkeypatch.setenv("NATC_LIB_PATH", str(directory.path))
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path / "cache"))
    runtime.clear()
    yield directory
    runtime.clear()


@pytest.fixture
def kernels(libraries: LibraryDirectory) -> LibraryDirectory:
    """The library directory with a kernel for every spec of `c_library.SPECS`."""
    for spec in SPECS.values():
        libraries.add(spec)
    return libraries


@pytest.fixture
def doubles(libraries: LibraryDirectory, monkeypatch: pytest.MonkeyPatch) -> Doubles:
    """A kernel for every call, and none of them compiled; the reference is forbidden."""
    kernels = Doubles()
    monkeypatch.setattr(registry, "resolved", kernels)
    monkeypatch.setenv("NATC_STRICT", "1")
    return kernels
