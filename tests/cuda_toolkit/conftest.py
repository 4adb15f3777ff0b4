from __future__ import annotations

from pathlib import Path

import pytest
from support.own_folders import use_own_folders


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing tuned, nothing built."""
    use_own_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("NATC_LIB_PATH", str(tmp_path / "lib"))
    return tmp_path
