"""The network of a recipe, and the trained network in a run's folder or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from natc.errors import ArgumentError, CheckpointError
from natc.models import VARIANTS, Network, files, load
from natc.vision import recipe as recipes
from natc.vision.recipe import ModelSection, Recipe

MODEL_FILE = "model.pth"


def build(section: ModelSection, num_classes: int) -> Network:
    """Return the network of a recipe, with random weights or the weights that the recipe names."""
    if section.name not in VARIANTS:
        raise ArgumentError(
            f"model.name is {section.name!r}; it must be one of {', '.join(sorted(VARIANTS))}."
        )
    options = {**section.options, "num_classes": num_classes}
    try:
        network = VARIANTS[section.name].build(**options)
    except TypeError as error:
        raise ArgumentError(f"model.options: {error}.") from error
    if section.weights is not None:
        load(section.weights, model=network)
    return network


class Trained(NamedTuple):
    """A network with weights, and what its training knew."""

    network: Network
    name: str
    recipe: Recipe | None
    """None for weights that `natc train` did not write."""
    classes: list[str] | None
    """Names of the classes; None if the file does not say."""
    image_size: int
    crop: float


def open_trained(source: str, variant: str | None = None) -> Trained:
    """Return the network of a run's folder, or of anything that `natc.models.load` takes.

    Raises CheckpointError for a folder without a trained network, a damaged file, or the weights
    of another network.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        path = path / MODEL_FILE
        if not path.is_file():
            raise CheckpointError(
                f"folder {source} has no {MODEL_FILE}; natc train writes it at the end of the "
                "first epoch. Run natc train, or name another folder."
            )
    if path.is_file() and path.suffix == ".pth":
        content = files.read(path).content
        if "recipe" in content and "classes" in content:
            return _of_training(path, content)
    network = load(source, variant=variant)
    name = network.checkpoint.network
    size = VARIANTS[name].img_size if name in VARIANTS else 224
    return Trained(network, name, None, None, size, 0.875)


def _of_training(path: Path, content: Any) -> Trained:
    recipe = recipes.from_builtins(content["recipe"], f"the recipe in {path}")
    classes = list(content["classes"])
    # Without model.weights: the file that training started from may be gone.
    section = ModelSection(name=recipe.model.name, options=recipe.model.options)
    network = build(section, len(classes))
    load(path, model=network)
    data = recipe.data
    return Trained(network, recipe.model.name, recipe, classes, data.image_size, data.crop)
