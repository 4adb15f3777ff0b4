"""Library directories that a program names by itself."""

from __future__ import annotations

from pathlib import Path

from natc import workspace
from natc.runtime import registry


def use(directory: str | Path) -> None:
    """Search a directory of libraries before all others, from the next call on.

    Kernels that were found before are forgotten, as by `clear`.
    """
    workspace.use_library_dir(directory)
    registry.clear()
