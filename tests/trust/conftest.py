from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.own_folders import unset_variables, use_own_folders

from natc import runtime


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace and a cache of the test's own, and none of natc's variables set by the user."""
    unset_variables(monkeypatch)
    monkeypatch.setenv("NATC_JIT", "off")
    use_own_folders(tmp_path, monkeypatch)
    runtime.clear()
    yield tmp_path
    runtime.clear()
