"""Vectors of released NATTEN versions: `index.json` lists the cases, one `.npz` holds each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GoldenCase:
    """One case: its name, kind, parameters, and the file with its arrays."""

    name: str
    kind: str
    params: dict[str, Any]
    path: Path

    def arrays(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the arrays by name, inputs and results, in the layout of their release."""
        with np.load(self.path) as file:
            return {
                name: torch.from_numpy(file[name]).to(dtype)
                for name in file.files
                if name != "params"
            }


def golden_cases(directory: Path) -> list[GoldenCase]:
    """List the cases of a directory in the order of its index.

    Raises:
        FileNotFoundError: the directory has no index.json.
    """
    index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    return [
        GoldenCase(case["name"], case["kind"], case["params"], directory / case["file"])
        for case in index["cases"]
    ]
