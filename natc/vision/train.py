"""The training of a classifier: epochs, validation, log and checkpoints.

Random numbers and images of a step depend on the recipe and on the step's number alone. So a
stopped training that continues from a checkpoint has the same losses as one without the stop.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from natc.errors import ArgumentError, DataError, TrainingError
from natc.host.detect import cpu_flags
from natc.store.files import locked
from natc.vision import recipe as recipes
from natc.vision.batches import Sharing, evaluation_batches, training_batches
from natc.vision.evaluate import Evaluation, evaluate
from natc.vision.images import (
    ImageDataset,
    evaluation_transform,
    open_images,
    training_transform,
)
from natc.vision.learner import Learner
from natc.vision.recipe import Recipe
from natc.vision.run_folder import Row, RunFolder

# Losses stay on the device for so many steps: to fetch one, the CPU waits for the GPU.
_STEPS_A_FETCH = 20


class Progress(NamedTuple):
    """The step that a training has reached, its last loss, and the top-1 of its best epoch."""

    step: int
    steps: int
    loss: float | None
    top1: float | None


class TrainingSummary(NamedTuple):
    """The folder and length of a training, and the accuracy of its best epoch."""

    folder: Path
    steps: int
    continued_from: int
    seconds: float
    top1: float | None
    top5: float | None


def _ignore(value: object) -> None:
    pass


def train(
    recipe: Recipe,
    *,
    on_progress: Callable[[Progress], None] = _ignore,
    note: Callable[[str], None] = _ignore,
) -> TrainingSummary | None:
    """Train to the last epoch of a recipe, from the checkpoint in its folder if there is one.

    If several processes train, the first one returns the summary and calls on_progress and note,
    and the others return None.
    on_progress is called after every few steps; note takes a line of text for the user.
    Raises DataError, CheckpointError, ArgumentError or TrainingError.
    """
    begin = time.monotonic()
    accelerator = _accelerator(recipe)
    main = accelerator.is_main_process
    if main and accelerator.device.type == "cpu" and recipe.training.precision == "bfloat16":
        flags = cpu_flags()
        if flags and not flags & {"avx512_bf16", "amx_bf16"}:
            note(
                "this CPU has no instructions for bfloat16, so that linear layers are slower "
                "than in float32; set training.precision to float32."
            )
    training = _Training(recipe, accelerator, on_progress if main else _ignore)
    folder = training.folder.path
    with locked(folder, wait=False) if main else contextlib.nullcontext():
        training.run(note if main else _ignore)
    if not main:
        return None
    best = training.best
    return TrainingSummary(
        folder,
        training.steps,
        training.continued_from,
        time.monotonic() - begin,
        best.get("top1"),
        best.get("top5"),
    )


def _accelerator(recipe: Recipe) -> Accelerator:
    settings = recipe.training
    if settings.precision == "float16" and not torch.cuda.is_available():
        raise ArgumentError(
            "training.precision is float16, which needs a GPU; take float32 or bfloat16."
        )
    precision = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[settings.precision]
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=settings.accumulation,
        dynamo_backend="inductor" if settings.compile else "no",
    )
    way = accelerator.distributed_type.value
    if way not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise TrainingError(
            f"accelerate is configured for {way}; natc train runs in one process, or with DDP on "
            "several CPUs or GPUs: change it with accelerate config."
        )
    return accelerator


class _Training:
    """A training: its images, its learner and its folder."""

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, on_progress: Callable[[Progress], None]
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.on_progress = on_progress
        settings, data = recipe.training, recipe.data
        images = open_images(data.train)
        self.classes = images.classes
        self.images = ImageDataset(images, training_transform(recipe), recipe.seed)
        self.sharing = Sharing(
            settings.batch_size,
            settings.accumulation,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.epoch_steps = self.sharing.steps_an_epoch(len(self.images))
        if not self.epoch_steps:
            raise DataError(
                f"{data.train} has {len(self.images)} images, and a step takes "
                f"{self.sharing.images_a_step}: lower training.batch_size."
            )
        self.validation: ImageDataset | None = None
        if data.validation is not None:
            transform = evaluation_transform(data.image_size, data.crop)
            labelled = open_images(data.validation, self.classes)
            self.validation = ImageDataset(labelled, transform, recipe.seed)
        self.learner = Learner(recipe, accelerator, len(self.classes), self.epoch_steps)
        self.folder = RunFolder(Path(recipe.output))
        self.steps = self.epoch_steps * recipe.epochs
        self.continued_from = 0
        self.best: dict[str, float] = {}
        self.losses: list[Tensor] = []
        self.rates: list[float] = []
        self.board: Any = None
        self.saved = time.monotonic()

    def run(self, note: Callable[[str], None]) -> None:
        """Train to the last step."""
        main = self.accelerator.is_main_process
        checkpoint = self.folder.begin(self.recipe, write=main)
        self.accelerator.wait_for_everyone()
        if checkpoint is not None:
            if checkpoint["classes"] != self.classes:
                raise DataError(
                    f"{self.recipe.data.train} has other classes than when the training in "
                    f"{self.folder.path} began; name another folder with --output."
                )
            self.learner.restore(checkpoint, str(self.folder.checkpoint_path))
            self.best = dict(checkpoint["best"])
            self.continued_from = self.learner.step_number
            note(f"continuing in {self.folder.path} from step {self.continued_from}")
        if main and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            board = self.folder.path / "tensorboard"
            self.board = SummaryWriter(board, purge_step=self.continued_from + 1)
        for epoch in range(self.continued_from // self.epoch_steps, self.recipe.epochs):
            self._run_epoch(epoch)
        if self.board is not None:
            self.board.close()

    def _run_epoch(self, epoch: int) -> None:
        begin = time.monotonic()
        first = self.learner.step_number % self.epoch_steps
        workers = self.recipe.data.workers
        batches = training_batches(self.images, self.sharing, epoch, first, workers)
        self.learner.module.train()
        for number in range(first + 1, self.epoch_steps + 1):
            self.losses.append(self.learner.step(batches))
            self.rates.append(self.learner.learning_rate)
            last = number == self.epoch_steps
            if last or len(self.losses) == _STEPS_A_FETCH:
                self._fetch_losses()
                # After the last step the checkpoint waits for the validation.
                minutes = (time.monotonic() - self.saved) / 60
                if not last and minutes >= self.recipe.training.checkpoint_minutes:
                    self._save()
        images = (self.epoch_steps - first) * self.sharing.images_a_step
        self._end_epoch(epoch, images / (time.monotonic() - begin))

    def _fetch_losses(self) -> None:
        """Log the losses of the last steps; raise TrainingError if a loss is not finite."""
        mean = self.accelerator.reduce(torch.stack(self.losses), "mean").tolist()
        first = self.learner.step_number - len(self.losses) + 1
        rows: list[Row] = [
            {"step": first + index, "loss": loss, "learning_rate": rate}
            for index, (loss, rate) in enumerate(zip(mean, self.rates))
        ]
        self.losses, self.rates = [], []
        self._log(rows)
        for row in rows:
            if not math.isfinite(row["loss"]):
                raise TrainingError(
                    f"the loss of step {row['step']} is {row['loss']}. Lower "
                    "optimizer.learning_rate, or take another training.precision, and train in "
                    f"another folder; {self.folder.path} keeps its last checkpoint."
                )
        self._report(mean[-1])

    def _end_epoch(self, epoch: int, images_per_second: float) -> None:
        result = self._validate()
        row: Row = {"step": self.learner.step_number, "epoch": epoch + 1}
        if result is not None:
            row |= {"top1": result.top1, "top5": result.top5, "loss": result.loss}
        self._log([{**row, "images_per_second": images_per_second}])
        if result is None or result.top1 >= self.best.get("top1", 0.0):
            self.best = {} if result is None else {"top1": result.top1, "top5": result.top5}
            if self.accelerator.is_main_process:
                weights = self.learner.evaluated.state_dict()
                self.folder.write_model({**self._about(), "state_dict": weights})
        self._save()
        self._report(None)
        if self.accelerator.is_main_process and importlib.util.find_spec("matplotlib"):
            from natc.vision import pictures

            pictures.curves(self.folder.rows(), self.folder.path / "curves.png")

    def _validate(self) -> Evaluation | None:
        if self.validation is None:
            return None
        batches = evaluation_batches(self.validation, self.sharing, self.recipe.data.workers)
        return evaluate(
            self.learner.evaluated,
            batches,
            len(self.classes),
            self.accelerator.device,
            precision=self.accelerator.autocast,
            total=lambda sums: self.accelerator.reduce(sums, "sum"),
        )

    def _about(self) -> Row:
        """Return what checkpoint and weights say about the training."""
        return {
            "arch": self.recipe.model.name,
            "recipe": recipes.to_builtins(self.recipe),
            "classes": self.classes,
            "best": self.best,
        }

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.accelerator.is_main_process:
            self.folder.write_checkpoint({**self._about(), **self.learner.state()})

    def _report(self, loss: float | None) -> None:
        step = self.learner.step_number
        self.on_progress(Progress(step, self.steps, loss, self.best.get("top1")))

    def _log(self, rows: list[Row]) -> None:
        if not self.accelerator.is_main_process:
            return
        self.folder.append(rows)
        for row in rows if self.board is not None else ():
            part = "validation" if "epoch" in row else "training"
            for name in row.keys() - {"step", "epoch"}:
                self.board.add_scalar(f"{part}/{name}", row[name], row["step"])
