"""timm, where it is installed and can be imported."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

# torch forgets an operator when its library object goes.
_LIBRARIES: list[torch.library.Library] = []


def timm() -> Any:
    """Return the package timm; skip the test that asks if it is not installed."""
    _repair_torchvision()
    return pytest.importorskip("timm", reason="needs timm: pip install 'natc[timm]'")


def _repair_torchvision() -> None:
    """Make torchvision importable if it was built for CUDA and torch was not.

    Its compiled operators cannot be loaded then, and it fails as it describes one of them to
    torch. Backbones need none of its operators.
    """
    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
        import torchvision  # noqa: F401
