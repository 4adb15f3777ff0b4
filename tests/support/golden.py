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

    @property
    def options(self) -> dict[str, Any]:
        """The kernel_size, dilation, stride and is_causal of the case, a tuple each."""
        rank = self.params["ndim"]
        options = {
            "kernel_size": self.params["kernel_size"],
            "dilation": self.params["dilation"],
            "stride": self.params.get("stride", [1] * rank),
            "is_causal": self.params["is_causal"],
        }
        return {name: tuple(entries) for name, entries in options.items()}

    @property
    def heads_last(self) -> bool:
        """Whether arrays are `[batch, *spatial, heads, channels]`; else heads follow batch."""
        return self.kind == "fused"


OPERATORS = ("fused", "unfused", "unfused_qk", "unfused_av")  # kinds that are no module or model


def golden_directories(root: Path) -> list[Path]:
    """Return where cases are: tests/data/golden of the checkout `root`, and the whole set.

    The whole set is in shared/golden beside the checkout, where that exists.
    """
    directories = [root / "tests" / "data" / "golden"]
    whole = root.parent / "shared" / "golden"
    return [*directories, whole] if whole.is_dir() else directories


def every_golden_case(root: Path) -> list[GoldenCase]:
    """List each case of an operator once, whichever directories hold it; modules are left out."""
    cases: dict[str, GoldenCase] = {}
    for directory in golden_directories(root):
        for case in golden_cases(directory):
            if case.kind in OPERATORS:
                cases.setdefault(case.name, case)
    return list(cases.values())


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


def module_cases(root: Path) -> list[GoldenCase]:
    """List the cases of modules in tests/data/golden_model of the checkout `root`.

    That directory has no index: each file holds its own parameters.
    """
    cases = []
    for path in sorted((root / "tests" / "data" / "golden_model").glob("m0*.npz")):
        with np.load(path) as file:
            params = json.loads(str(file["params"]))
        cases.append(GoldenCase(path.stem, params["kind"], params, path))
    return cases
