"""The folder of a training: checkpoints, weights, log and pictures.

A kill at any moment leaves files that load: checkpoints and weights are replaced in one step, and
a line of the log that was cut off is dropped when training continues.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
import yaml

from natc.errors import ArgumentError, CheckpointError
from natc.models import files
from natc.store.files import make_directory, write_atomically
from natc.vision import recipe as recipes
from natc.vision.networks import MODEL_FILE
from natc.vision.recipe import Recipe

Row = dict[str, Any]


class RunFolder:
    """The folder that a recipe names as its output."""

    def __init__(self, path: Path) -> None:
        self.path = make_directory(path)
        self.checkpoint_path = path / "checkpoint.pth"
        self.model_path = path / MODEL_FILE
        self.log_path = path / "log.jsonl"

    def begin(self, recipe: Recipe, *, write: bool) -> Mapping[str, Any] | None:
        """Return the checkpoint to continue from, or None.

        With `write`, drops lines of the log that are later than the checkpoint, and writes the
        recipe: only one process of a training does this.

        Raises CheckpointError if the checkpoint is damaged, and ArgumentError if it belongs to
        another recipe.
        """
        checkpoint = self._read_checkpoint(recipe) if self.checkpoint_path.exists() else None
        if not write:
            return checkpoint
        step = 0 if checkpoint is None else checkpoint["step"]
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_atomically(self.log_path, "".join(kept))
        text = yaml.safe_dump(recipes.to_builtins(recipe), sort_keys=False)
        write_atomically(self.path / "recipe.yaml", text)
        return checkpoint

    def _read_checkpoint(self, recipe: Recipe) -> Mapping[str, Any]:
        path = self.checkpoint_path
        try:
            checkpoint = files.read(path).content
            before = recipes.from_builtins(checkpoint["recipe"], f"the recipe in {path}")
            missing = {"step", "state_dict", "optimizer", "classes", "best"} - set(checkpoint)
        except KeyError as error:
            raise CheckpointError(
                f"{path} is no checkpoint of natc train: it has no {error}. Name another folder "
                "with --output."
            ) from error
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} Or remove it: training then begins again, and {self.model_path} keeps "
                "the weights so far until the end of its first epoch."
            ) from error
        if missing:
            raise CheckpointError(
                f"{path} has no {', '.join(sorted(missing))}: remove it, and training begins "
                "again."
            )
        different = recipes.differences(before, recipe)
        if different:
            raise ArgumentError(
                f"{self.path} holds a training with another recipe ({'; '.join(different[:5])}). "
                "Name another folder with --output, or remove this one."
            )
        return checkpoint

    def write_checkpoint(self, content: Row) -> None:
        """Replace the checkpoint."""
        _save(self.checkpoint_path, content)

    def write_model(self, content: Row) -> None:
        """Replace the weights that `natc eval` reads."""
        _save(self.model_path, content)

    def append(self, rows: list[Row]) -> None:
        """Add lines to the log."""
        with open(self.log_path, "a", encoding="utf-8") as log:
            log.write("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> list[Row]:
        """Return the lines of the log; a line that was cut off is left out."""
        rows = []
        if self.log_path.is_file():
            for line in self.log_path.read_text("utf-8", errors="replace").splitlines():
                try:
                    rows.append(msgspec.json.decode(line, type=dict[str, Any]))
                except msgspec.DecodeError:
                    continue
        return rows


def _save(path: Path, content: Row) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())
