"""Labelled images: a folder for each class, or the handwritten digits of scikit-learn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import Tensor
from torch.utils.data import Dataset

from natc.errors import DataError
from natc.vision.recipe import Recipe

_DIGITS = "digits:"


class LabelledImages(NamedTuple):
    """Images with labels, which are indices into `classes`.

    images: paths, or arrays of grey values from 0 to 255.
    """

    source: str
    images: Sequence[str] | np.ndarray[Any, Any]
    labels: list[int]
    classes: list[str]


class DamagedImage(NamedTuple):
    """An image that cannot be read; an exception from another process would lose its form."""

    message: str


def open_images(source: str, classes: Sequence[str] | None = None) -> LabelledImages:
    """Return the images of a folder, or of `digits:train` and `digits:test`.

    classes: the classes that labels index; None means all classes of the images, sorted by name.
    Raises DataError for a folder that is missing or has no images, and for a class that is none of
    `classes`.
    """
    images = _digits(source) if source.startswith(_DIGITS) else _folder(source)
    if classes is None:
        return images
    unknown = [name for name in images.classes if name not in classes]
    if unknown:
        raise DataError(
            f"{source} has images of {', '.join(map(repr, unknown[:5]))}, which is none of the "
            f"{len(classes)} classes of the network ({', '.join(classes[:5])}, ...): remove these "
            "images, or train a network with all classes."
        )
    indices = [classes.index(name) for name in images.classes]
    return images._replace(
        labels=[indices[label] for label in images.labels], classes=list(classes)
    )


def require_classes(images: LabelledImages, count: int) -> None:
    """Raise DataError unless images have as many classes as a network."""
    if len(images.classes) != count:
        raise DataError(
            f"{images.source} has {len(images.classes)} classes, and the network {count}: name "
            "images of the classes that the network was trained with, or another network."
        )


def _folder(source: str) -> LabelledImages:
    root = Path(source).expanduser()
    if not root.is_dir():
        raise DataError(
            f"there is no folder {source}; name a folder that has a folder of images for each "
            "class, such as train/cat/1.jpg."
        )
    pairs, index_of = find_images_and_targets(str(root))
    if not pairs:
        raise DataError(f"folder {source} has no images in folders of classes, as in cat/1.jpg.")
    if "" in index_of:
        stray = next(path for path, label in pairs if label == index_of[""])
        raise DataError(
            f"image {stray} has no class: move it into a folder with the class's name."
        )
    return LabelledImages(
        source, [path for path, _ in pairs], [label for _, label in pairs], list(index_of)
    )


def _digits(source: str) -> LabelledImages:
    """Return 1437 images to train with, or the other 360."""
    part = source.removeprefix(_DIGITS)
    if part not in ("train", "test"):
        raise DataError(f"{source} does not exist; digits:train and digits:test do.")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError(f"{source} needs scikit-learn: pip install scikit-learn.") from error
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(grey)), test_size=0.2, random_state=0, stratify=digits.target
    )
    chosen = train if part == "train" else test
    labels = [int(label) for label in digits.target[chosen]]
    return LabelledImages(source, grey[chosen], labels, [str(digit) for digit in range(10)])


def training_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """Return timm's random transform of an image to a normalized `[3, size, size]`."""
    augmentation = recipe.augmentation
    return create_transform(
        recipe.data.image_size,
        is_training=True,
        scale=augmentation.scale,
        hflip=augmentation.flip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.rand_augment,
        interpolation=augmentation.interpolation,
        re_prob=augmentation.erasing,
        re_mode="pixel",
    )


def evaluation_transform(size: int, crop: float) -> Callable[[Image.Image], Tensor]:
    """Return timm's transform of an image to the normalized square in its middle."""
    return create_transform(size, crop_pct=crop, interpolation="bicubic")


def seed_everything(*numbers: int) -> None:
    """Seed the random numbers of Python, NumPy and torch; other numbers give other ones."""
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


class ImageDataset(Dataset[Any]):
    """Transformed images with labels, by (epoch, index).

    The random numbers of a transform depend on seed, epoch and index alone. So it does not
    matter which process reads an image, nor which images it read before.
    """

    def __init__(
        self, images: LabelledImages, transform: Callable[[Image.Image], Tensor], seed: int
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | DamagedImage:
        epoch, index = key
        seed_everything(self.seed, epoch, index)
        image = self.images.images[index]
        if isinstance(image, str):
            try:
                picture = open_image(image)
            except DataError as error:
                return DamagedImage(str(error))
        else:
            picture = Image.fromarray(image).convert("RGB")
        return self.transform(picture), self.images.labels[index]


def open_image(path: str) -> Image.Image:
    """Return the image in a file, in red, green and blue; raises DataError if it is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"image {path} cannot be read: {str(error) or type(error).__name__}. Replace or "
            "remove it, and run the same command again."
        ) from error
