"""Fixtures: a small folder of images, and a recipe that trains on it in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import Natc, in_this_process
from support.own_folders import unset_variables, use_own_folders
from support.vision import timm as import_timm


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset_variables(monkeypatch)
    monkeypatch.setenv("NATC_JIT", "off")
    use_own_folders(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    """Skip the tests without the extra; forget the settings of accelerate after each test."""
    import_timm()
    reason = "pip install 'natc[vision]'"
    state = pytest.importorskip("accelerate.state", reason=f"needs accelerate: {reason}")
    pytest.importorskip("yaml", reason=f"needs pyyaml: {reason}")
    pytest.importorskip("matplotlib", reason=f"needs matplotlib: {reason}")
    yield
    state.AcceleratorState._reset_state(True)
    state.GradientState._reset_state()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train/ and val/: bright images are `day`, dark ones `night`."""
    image_module = pytest.importorskip("PIL.Image", reason="needs pillow, which timm brings")
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 13), ("val", 3)):
        for name, offset in (("day", 120), ("night", 0)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 100, (20, 24, 3)) + offset
                picture = image_module.fromarray(pixels.astype(np.uint8))
                picture.save(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def content(folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a recipe in dicts: three steps an epoch, and every source of random numbers."""
    return {
        "output": str(tmp_path / "run"),
        "model": {
            "name": "nat_mini",
            "options": {
                "embed_dim": 8,
                "depths": [1, 1],
                "num_heads": [1, 2],
                "mlp_ratio": 2,
                "kernel_size": 3,
                "drop_path_rate": 0.3,
            },
        },
        "data": {
            "train": str(folder / "train"),
            "validation": str(folder / "val"),
            "image_size": 16,
            "workers": 0,
        },
        "optimizer": {"epochs": 2, "warmup_epochs": 1, "cooldown_epochs": 1},
        "training": {"batch_size": 4, "accumulation": 2, "ema": 0.9},
    }


@pytest.fixture
def natc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Natc:
    """Run the command line in this process, as `natc("eval", "runs/digits")`."""
    return in_this_process(capsys, monkeypatch)
