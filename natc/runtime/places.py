"""Library directories that a program names by itself."""

from __future__ import annotations

from pathlib import Path

from natc import workspace
from natc.errors import ArgumentError
from natc.runtime import registry


def use(directory: str | Path) -> None:
    """Search a directory of libraries before all others, from the next call on.

    Kernels that were found before are forgotten, as by `clear`. Raises ArgumentError when there is
    no such directory. What is wrong with its libraries is said by the call that wants one, and by
    `problems`.
    """
    if not Path(directory).expanduser().is_dir():
        raise ArgumentError(
            f"directory is {str(directory)!r}, and there is no such directory; give the one that "
            "holds libraries and their manifests."
        )
    workspace.use_library_dir(directory)
    registry.clear()
