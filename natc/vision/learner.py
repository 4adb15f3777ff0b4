"""The network in training: its optimizer, learning rate and averaged weights, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn import functional

from natc.errors import ArgumentError, CheckpointError
from natc.models import Network
from natc.vision.batches import Batch
from natc.vision.images import seed_everything
from natc.vision.networks import build
from natc.vision.recipe import Recipe


class Learner:
    """A network and all that its next step depends on, besides the images.

    epoch_steps: number of steps of an epoch, for the learning rate.
    """

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, classes: int, epoch_steps: int
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.step_number = 0
        self.learning_rate = 0.0
        settings, training = recipe.optimizer, recipe.training
        seed_everything(recipe.seed)
        self.network = build(recipe.model, classes).to(accelerator.device)
        self.network.set_grad_checkpointing(training.gradient_checkpointing)
        self.average = ModelEmaV3(self.network, training.ema) if training.ema else None
        try:
            optimizer = create_optimizer_v2(
                self.network,
                opt=settings.name,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                layer_decay=settings.layer_decay,
            )
        except ValueError as error:
            raise ArgumentError(f"optimizer.name is {settings.name!r}: {error}.") from error
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            "cosine",
            num_epochs=settings.epochs,
            warmup_epochs=settings.warmup_epochs,
            cooldown_epochs=settings.cooldown_epochs,
            warmup_lr=settings.warmup_learning_rate,
            min_lr=settings.least_learning_rate,
            step_on_epochs=False,
            updates_per_epoch=epoch_steps,
        )
        self.module, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.smoothing = recipe.augmentation.smoothing
        self.mixup: Mixup | None = None
        if recipe.mixes:
            augmentation = recipe.augmentation
            self.mixup = Mixup(
                augmentation.mixup,
                augmentation.cutmix,
                label_smoothing=augmentation.smoothing,
                num_classes=classes,
            )
            # Mixup smooths the labels that it mixes.
            self.smoothing = 0.0

    @property
    def evaluated(self) -> Network:
        """The network to evaluate and to keep: with averaged weights if the recipe averages."""
        return self.network if self.average is None else self.average.module

    def step(self, batches: Iterator[Batch]) -> Tensor:
        """Update the weights once, and return the mean loss, which stays on the device."""
        self.schedule.step_update(self.step_number)
        self.learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        clip = self.recipe.optimizer.clip_norm
        losses = []
        for part in range(self.recipe.training.accumulation):
            images, labels = (tensor.to(self.accelerator.device) for tensor in next(batches))
            # Mixup and drop path draw the same numbers in this step, whatever came before.
            process = self.accelerator.process_index
            seed_everything(self.recipe.seed, self.step_number, part, process)
            if self.mixup is not None:
                images, labels = self.mixup(images, labels)
            with self.accelerator.accumulate(self.module):
                logits = self.module(images)
                loss = functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and clip is not None:
                    self.accelerator.clip_grad_norm_(self.module.parameters(), clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        self.step_number += 1
        if self.average is not None:
            self.average.update(self.network)
        return torch.stack(losses).mean()

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs."""
        state = {
            "step": self.step_number,
            "state_dict": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.average is not None:
            state["state_dict_ema"] = self.average.module.state_dict()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def restore(self, state: Mapping[str, Any], source: str) -> None:
        """Continue from a state; raises CheckpointError if it is another network's."""
        try:
            self.network.load_state_dict(state["state_dict"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.module.load_state_dict(state["state_dict_ema"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{source} does not fit the network of the recipe: {' '.join(str(error).split())} "
                "Name another folder with --output."
            ) from error
        self.step_number = state["step"]
