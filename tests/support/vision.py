"""Imports timm, also beside a torchvision built for another torch; skips tests without it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# torch forgets an operator when its library object goes.
_LIBRARIES: list[torch.library.Library] = []


def timm() -> Any:
    """Return the package timm; skip the test that asks if it is not installed."""
    repair_torchvision()
    return pytest.importorskip("timm", reason="needs timm: pip install 'natc[timm]'")


def repair_torchvision() -> None:
    """Make torchvision importable if it was built for CUDA and torch was not.

    Its compiled operators cannot be loaded then, and it fails as it describes some of them to
    torch. Backbones need none of its operators.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or "torchvision" in sys.modules:
        return
    folder = Path(spec.origin).parent
    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        descriptions = (folder / "_meta_registrations.py").read_text("utf-8")
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in re.findall(r"register_fake\(.torchvision::(\w+)", descriptions):
            operators.define(f"{name}() -> ()")
        _LIBRARIES.append(operators)
