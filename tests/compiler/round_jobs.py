"""Jobs that fail in every way, in a module that a process imports in no time."""

from __future__ import annotations

import os
import time
from typing import Any

from natc.errors import TuneError


def crash_hang_or_err(*arguments: Any) -> list[float]:
    """Return the process's id, or fail as the name of the library says."""
    library = arguments[2]
    if "candidate_1" in library:
        os.abort()
    if "candidate_2" in library:
        time.sleep(600)
    if "candidate_3" in library:
        raise TuneError("wrong result")
    return [float(os.getpid())]


def refuse(*_: Any) -> str:
    """Return why a candidate is not worth measuring."""
    return "spills 8 bytes of registers"
