"""Jobs that fail in every way, in a module that a process imports in no time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from natc.errors import TuneError


def crash_hang_or_err(*arguments: Any) -> list[float]:
    """Return the process's id, or fail as the name of the library says."""
    (library,) = arguments[2]
    if "candidate_1" in library:
        os.abort()
    if "candidate_2" in library:
        time.sleep(600)
    if "candidate_3" in library:
        raise TuneError("wrong result")
    return [float(os.getpid())]


def spill(*arguments: Any) -> tuple[str | None, dict[str, float]]:
    """Write some library; return that it spills, unless it may, and its features."""
    Path(arguments[3]).write_text(str(arguments[2]))
    return None if arguments[5] else "spills 8 bytes of registers", {"spills": 2.0}


def refuse(*_: Any) -> tuple[str, dict[str, float]]:
    """Return why a candidate is not worth measuring, and no features."""
    return "has 2048 threads in a block; sm_90 has 1024", {}
