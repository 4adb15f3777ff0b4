"""How many images a network labels correctly, and how fast."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from natc.vision.batches import Batch


class Evaluation(NamedTuple):
    """What `evaluate` measured; top1 and top5 are shares of the images."""

    images: int
    top1: float
    top5: float
    loss: float
    images_per_second: float | None
    """Of the network, without reading images and without the first batch; None if there is no
    second one."""
    confusion: Tensor
    """`[classes, classes]`: images by class, and by the class that the network named."""


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    classes: int,
    device: torch.device,
    *,
    precision: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Evaluation:
    """Run a network on all batches, and compare its classes with the labels.

    Args:
        network: returns logits; left in the mode it was in.
        batches: images and labels.
        classes: number of classes.
        device: where the network is.
        precision: returns the context in which the network runs, such as autocast.
        total: adds up a tensor over all processes.
    """
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    # Images, correct among the first five, loss.
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    timed_images, seconds = 0, 0.0
    training = network.training
    network.eval()
    with torch.inference_mode():
        for number, (images, labels) in enumerate(batches):
            images, labels = images.to(device), labels.to(device)
            start = _now(device)
            with precision():
                logits = network(images).float()
            if number:
                seconds += _now(device) - start
                timed_images += len(images)
            best = logits.topk(min(5, classes), dim=1).indices
            confusion += torch.bincount(labels * classes + best[:, 0], minlength=classes**2)
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            hits = (best == labels[:, None]).sum()
            sums += torch.stack([torch.tensor(len(images), device=device), hits, loss]).double()
    network.train(training)
    confusion = total(confusion).cpu().reshape(classes, classes)
    images_seen, hits5, loss_sum = total(sums).tolist()
    return Evaluation(
        images=int(images_seen),
        top1=confusion.trace().item() / images_seen,
        top5=hits5 / images_seen,
        loss=loss_sum / images_seen,
        images_per_second=timed_images / seconds if timed_images else None,
        confusion=confusion,
    )


def _now(device: torch.device) -> float:
    """Return the time at which the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
