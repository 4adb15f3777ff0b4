"""A lock that is held as by another process."""

from __future__ import annotations

import fcntl
from pathlib import Path


class Holder:
    """Holds a lock by the system's own call, as another process would, until it lets go."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def let_go(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def take_again(self) -> None:
        """Fail where somebody else has it."""
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
