"""Empty folders for a test, in place of the user's folders and the folders that come with natc."""

from __future__ import annotations

from pathlib import Path

import pytest

from natc import env
from natc.store import workspace


def unset_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all variables that natc reads, whatever the user has set."""
    for variable in env.ALL:
        monkeypatch.delenv(variable.name, raising=False)


def use_own_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the workspace and the cache into a folder, where natc comes with nothing tuned."""
    monkeypatch.setenv("NATC_WORKSPACE", str(folder / "workspace"))
    monkeypatch.setenv("NATC_CACHE_DIR", str(folder / "cache"))
    for name in ("PACKAGED_DATA", "SHIPPED"):
        monkeypatch.setattr(workspace, name, folder / "shipped")
