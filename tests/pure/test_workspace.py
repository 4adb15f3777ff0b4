from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest
from support.own_folders import unset_variables

from natc.operations import CALLED_TOGETHER
from natc.spec import KernelSpec
from natc.store import workspace
from natc.targets import Target

SPEC = KernelSpec.make(7, rpb=True)
TARGET = Target("llvm", "x86-64-v3")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    unset_variables(monkeypatch)


def test_a_checkout_is_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_PACKAGE", tmp_path / "natc")
    assert workspace.workspace() == platformdirs.user_data_path("natc", appauthor=False)
    (tmp_path / "schedules").mkdir()
    (tmp_path / "pyproject.toml").touch()
    assert workspace.workspace() == tmp_path
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path / "named"))
    assert workspace.workspace() == tmp_path / "named"


def test_files_have_the_documented_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path))
    name = "na2d_k7_d32_float32_rpb"
    assert workspace.schedule_path(SPEC, TARGET) == (
        tmp_path / "schedules" / "llvm-x86-64-v3" / f"{name}.json"
    )
    assert workspace.log_path(SPEC, TARGET) == (
        tmp_path / "tuning_logs" / "llvm-x86-64-v3" / f"{name}.jsonl"
    )


def test_a_workspace_hides_shipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, shipped = tmp_path / "mine", tmp_path / "shipped"
    monkeypatch.setenv("NATC_WORKSPACE", str(mine))
    monkeypatch.setattr(workspace, "SHIPPED", shipped)
    assert workspace.find_schedule(SPEC, TARGET) is None
    assert list(workspace.schedule_files()) == []

    relative = workspace.schedule_path(SPEC, TARGET).relative_to(mine)
    for root in (shipped, mine):
        path = root / relative
        path.parent.mkdir(parents=True)
        path.touch()
        assert workspace.find_schedule(SPEC, TARGET) == path
        assert list(workspace.schedule_files()) == [path]


def test_workspaces_have_shipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path))
    schedules = list(workspace.schedule_files())
    assert schedules and all(path.is_relative_to(workspace.SHIPPED) for path in schedules)
    assert list(workspace.log_files())


def test_order_of_library_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, cache = tmp_path / "first", tmp_path / "second", tmp_path / "cache"
    monkeypatch.setenv("NATC_LIB_PATH", os.pathsep.join([str(first), "", str(second)]))
    monkeypatch.setenv("NATC_CACHE_DIR", str(cache))
    monkeypatch.setenv("NATC_JIT", "off")
    packaged = workspace.PACKAGED_DATA / "lib"
    assert workspace.library_dirs() == [first, second, cache / "lib", packaged]
    monkeypatch.setenv("NATC_JIT", "on")
    called = [cache / "jit" / group for group in CALLED_TOGETHER]
    assert workspace.library_dirs()[2:-1] == [cache / "lib", *called]


def test_the_cache_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workspace.cache_dir() == platformdirs.user_cache_path("natc", appauthor=False)
    monkeypatch.setenv("NATC_CACHE_DIR", "relative")
    assert workspace.cache_dir() == Path.cwd() / "relative"
