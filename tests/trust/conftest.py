from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from natc import env, runtime
from natc.store import workspace


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace and a cache of the test's own, and none of natc's variables set by the user."""
    for variable in env.ALL:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("NATC_JIT", "off")
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("PACKAGED_DATA", "SHIPPED"):
        monkeypatch.setattr(workspace, name, tmp_path / "shipped")
    runtime.clear()
    yield tmp_path
    runtime.clear()
