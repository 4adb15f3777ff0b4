"""The stand-in for a release of NATTEN, for the time of a test."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import natc.compat


@contextlib.contextmanager
def installed(version: str | None = None) -> Iterator[Any]:
    """Yield the module `natten` of a release."""
    natc.compat.install(version)
    try:
        yield importlib.import_module("natten")
    finally:
        natc.compat.uninstall()
