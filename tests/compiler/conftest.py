from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from support.built_kernels import BuiltKernels
from support.own_folders import use_own_folders

from natc import runtime

if TYPE_CHECKING:
    from support.tensor_core_kernels import Kernels


@pytest.fixture(scope="session")
def library_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def built(library_directory: Path) -> BuiltKernels:
    return BuiltKernels(library_directory)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Kernels for tensor cores, each built once for the tests of a file."""
    # Late: other tests need neither them nor what executes them.
    from support.tensor_core_kernels import Kernels

    return Kernels(tmp_path_factory)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, built: BuiltKernels, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing tuned, no libraries but the tests' own, and no call on the reference."""
    use_own_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("NATC_LIB_PATH", os.pathsep.join(map(str, built.directories)))
    monkeypatch.setenv("NATC_STRICT", "1")
    runtime.clear()
    yield tmp_path
    runtime.clear()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small calls: on a busy machine, threads wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
