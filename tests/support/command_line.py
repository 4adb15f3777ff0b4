"""How a command ended, and the type of the fixture that runs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    """Exit status, and what was written to stdout and stderr."""

    code: int
    out: str
    err: str


Natc = Callable[..., Result]
