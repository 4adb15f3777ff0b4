"""Batches of images: which images a step sees depends on its number alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from natc.errors import DataError
from natc.vision.images import DamagedImage, ImageDataset

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sharing:
    """How the images of a step are divided: by processes, and by forward passes of each."""

    batch_size: int
    accumulation: int = 1
    process: int = 0
    processes: int = 1

    @property
    def images_a_step(self) -> int:
        """Number of images of a step."""
        return self.batch_size * self.accumulation * self.processes

    def steps_an_epoch(self, images: int) -> int:
        """Return the number of whole steps in so many images."""
        return images // self.images_a_step


def _collate(samples: list[Any]) -> Batch | DamagedImage:
    for sample in samples:
        if isinstance(sample, DamagedImage):
            return sample
    images, labels = default_collate(samples)
    return images, labels


def _load(
    dataset: ImageDataset, batches: list[list[tuple[int, int]]], workers: int
) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, DamagedImage):
            raise DataError(batch.message)
        yield batch


def training_batches(
    dataset: ImageDataset, sharing: Sharing, epoch: int, first_step: int, workers: int
) -> Iterator[Batch]:
    """Yield this process's batches of an epoch in random order, starting at `first_step`.

    There are `sharing.accumulation` batches for each step.
    """
    steps = sharing.steps_an_epoch(len(dataset))
    order = np.random.default_rng([dataset.seed, epoch]).permutation(len(dataset))
    shape = (steps, sharing.accumulation, sharing.processes, sharing.batch_size)
    parts = order[: steps * sharing.images_a_step].reshape(shape)[first_step:, :, sharing.process]
    batches = [
        [(epoch, int(index)) for index in batch] for batch in parts.reshape(-1, sharing.batch_size)
    ]
    return _load(dataset, batches, workers)


def evaluation_batches(dataset: ImageDataset, sharing: Sharing, workers: int) -> Iterator[Batch]:
    """Yield this process's share of all images, in batches."""
    keys = [(0, index) for index in range(sharing.process, len(dataset), sharing.processes)]
    starts = range(0, len(keys), sharing.batch_size)
    return _load(dataset, [keys[start : start + sharing.batch_size] for start in starts], workers)
