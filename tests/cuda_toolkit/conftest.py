from __future__ import annotations

from pathlib import Path

import pytest

from natc.store import workspace


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing tuned, nothing built."""
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NATC_LIB_PATH", str(tmp_path / "lib"))
    for name in ("PACKAGED_DATA", "SHIPPED"):
        monkeypatch.setattr(workspace, name, tmp_path / "packaged")
    return tmp_path
