"""Recipes: what to train, on which images, and how; read from YAML.

The defaults are the published recipe of NAT for ImageNet.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from natc.errors import ArgumentError
from natc.store.files import reason


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a recipe; names that it does not have are refused."""


class ModelSection(Section, frozen=True):
    """The network.

    name: a published network; options: arguments that change it, as for `natc.models.NAT`;
    weights: what `natc.models.load` takes, to start from instead of random weights.
    """

    name: str
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    weights: str | None = None


class DataSection(Section, frozen=True):
    """The images.

    train, validation: folders with a folder of images for each class, or `digits:train` and
    `digits:test`; crop: share of the resized image that validation sees; workers: processes
    that read images, 0 for none.
    """

    train: str
    validation: str | None = None
    image_size: int = 224
    crop: float = 0.875
    workers: int = 4


class AugmentationSection(Section, frozen=True):
    """Random changes of training images, as timm names them.

    scale: share of the image's area in a random crop; flip: probability of a horizontal flip;
    color_jitter: used without rand_augment only; erasing: probability of random erasing;
    mixup, cutmix: parameters of their beta distributions, 0 for none; smoothing: of labels.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    color_jitter: float = 0.4
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"


class OptimizerSection(Section, frozen=True):
    """The optimizer and its learning rate, which follows a cosine after a linear warm-up.

    learning_rate: for all images of a step together, it is not scaled; layer_decay: factor from
    a layer to the one before; cooldown_epochs: at the least learning rate, after `epochs`.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    clip_norm: float | None = 5.0
    layer_decay: float | None = None
    epochs: int = 300
    warmup_epochs: int = 20
    cooldown_epochs: int = 10
    warmup_learning_rate: float = 1e-6
    least_learning_rate: float = 5e-6


class TrainingSection(Section, frozen=True):
    """How steps are computed and kept.

    batch_size: images of a process in a forward pass; accumulation: forward passes of a step;
    ema: decay of averaged weights, null for none; checkpoint_minutes: the longest time between
    two checkpoints, besides those at the end of each epoch.
    """

    batch_size: int = 128
    accumulation: int = 1
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema: float | None = None
    checkpoint_minutes: float = 10.0


class Recipe(Section, frozen=True):
    """All that decides the result of a training."""

    model: ModelSection
    data: DataSection
    augmentation: AugmentationSection = AugmentationSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    output: str = "runs/train"
    seed: int = 42

    @property
    def epochs(self) -> int:
        """Number of epochs, with those at the least learning rate."""
        return self.optimizer.epochs + self.optimizer.cooldown_epochs

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self.augmentation.mixup > 0 or self.augmentation.cutmix > 0


# They change neither the losses nor the result.
_WITHOUT_EFFECT = {"output", "data.workers", "training.checkpoint_minutes"}


class _RecipeLoader(yaml.SafeLoader):
    """Reads 1e-3 as a number; YAML 1.1, which PyYAML reads, takes it for text."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read(path: Path) -> Recipe:
    """Return the recipe in a YAML file.

    Raises ArgumentError naming the file, the entry and the allowed values.
    """
    try:
        content = yaml.load(path.read_text("utf-8"), _RecipeLoader)
    except OSError as error:
        raise ArgumentError(f"recipe {path} cannot be read: {reason(error)}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ArgumentError(f"recipe {path} is not YAML: {problem}.") from error
    return from_builtins(content, f"recipe {path}")


def from_builtins(content: Any, source: str) -> Recipe:
    """Return the recipe in dicts and lists; `source` names it in the ArgumentError."""
    try:
        recipe = msgspec.convert(content, Recipe)
    except msgspec.ValidationError as error:
        raise ArgumentError(f"{source}: {error}.") from error
    for name, value, lowest, highest in (
        ("data.image_size", recipe.data.image_size, 8, None),
        ("data.crop", recipe.data.crop, 0.1, 1),
        ("data.workers", recipe.data.workers, 0, None),
        ("augmentation.flip", recipe.augmentation.flip, 0, 1),
        ("augmentation.color_jitter", recipe.augmentation.color_jitter, 0, None),
        ("augmentation.erasing", recipe.augmentation.erasing, 0, 1),
        ("augmentation.mixup", recipe.augmentation.mixup, 0, None),
        ("augmentation.cutmix", recipe.augmentation.cutmix, 0, None),
        ("augmentation.smoothing", recipe.augmentation.smoothing, 0, 0.99),
        ("optimizer.learning_rate", recipe.optimizer.learning_rate, 0, None),
        ("optimizer.weight_decay", recipe.optimizer.weight_decay, 0, None),
        ("optimizer.epochs", recipe.optimizer.epochs, 1, None),
        ("optimizer.warmup_epochs", recipe.optimizer.warmup_epochs, 0, recipe.optimizer.epochs),
        ("optimizer.cooldown_epochs", recipe.optimizer.cooldown_epochs, 0, None),
        ("training.batch_size", recipe.training.batch_size, 1, None),
        ("training.accumulation", recipe.training.accumulation, 1, None),
        ("training.ema", recipe.training.ema or 0, 0, 1),
        ("seed", recipe.seed, 0, 2**32 - 1),
    ):
        if not (lowest <= value and (highest is None or value <= highest)):
            limit = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
            raise ArgumentError(f"{source}: {name} is {value}; it must be {limit}.")
    smallest, largest = recipe.augmentation.scale
    if not 0 < smallest <= largest <= 1:
        raise ArgumentError(
            f"{source}: augmentation.scale is {[smallest, largest]}; it must be two shares in "
            "(0, 1], the smaller one first."
        )
    if recipe.mixes and recipe.training.batch_size % 2:
        raise ArgumentError(
            f"{source}: training.batch_size is {recipe.training.batch_size}; mixup and cutmix "
            "mix pairs of images, so it must be even."
        )
    return recipe


def to_builtins(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as dicts and lists."""
    return msgspec.to_builtins(recipe)


def with_output(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with another folder for its results."""
    return msgspec.structs.replace(recipe, output=str(folder))


def differences(before: Recipe, after: Recipe) -> list[str]:
    """List the entries that differ and change the result, as `name: before, now after`."""
    old, new = _flat(to_builtins(before)), _flat(to_builtins(after))
    return [
        f"{name}: {old.get(name)}, now {new.get(name)}"
        for name in sorted({*old, *new} - _WITHOUT_EFFECT)
        if old.get(name) != new.get(name)
    ]


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one, with names such as `data.train`."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
