"""The classes of single images, with probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from natc.vision.images import evaluation_transform, open_image
from natc.vision.networks import Trained


class ImageClasses(NamedTuple):
    """The likeliest classes of an image, the first one first."""

    image: str
    classes: list[str]
    probabilities: list[float]


def predict(trained: Trained, paths: list[str], count: int = 5) -> list[ImageClasses]:
    """Return the `count` likeliest classes of each image.

    Raises DataError, before the network runs, if an image cannot be read.
    """
    transform = evaluation_transform(trained.image_size, trained.crop)
    images: list[Tensor] = [transform(open_image(path)) for path in paths]
    names = trained.classes or class_names(trained.network.num_classes)
    trained.network.eval()
    predictions = []
    with torch.inference_mode():
        # One at a time, so that the number of images does not decide the memory.
        for path, image in zip(paths, images):
            shares = trained.network(image[None])[0].double().softmax(0)
            best = shares.topk(min(count, len(names)))
            classes = [names[index] for index in best.indices.tolist()]
            predictions.append(ImageClasses(path, classes, best.values.tolist()))
    return predictions


def class_names(count: int) -> list[str]:
    """Return the names of ImageNet's 1000 classes; numbers for another count."""
    if count != 1000:
        return [f"class {index}" for index in range(count)]
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(index) for index in range(count)]
