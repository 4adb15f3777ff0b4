"""The published networks by name: a decorator registers each function that builds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, get_type_hints

from natc.models.network import Network

_Build = TypeVar("_Build", bound=Callable[..., Network])

IMAGENET22K_CLASSES = 21841


@dataclass(frozen=True)
class Variant:
    """A published network."""

    name: str
    network: type[Network]
    """The class of the network."""
    build: Callable[..., Network]
    """Returns the network with random weights; takes the options of its class."""
    img_size: int
    """Height and width of the images that it was trained for."""
    weights: dict[str, str]
    """The URL of each published file, by the data it was trained on; the best one first."""

    def num_classes(self, data: str) -> int:
        """Return the number of classes of the weights trained on `data`, a key of `weights`."""
        return IMAGENET22K_CLASSES if data.startswith("in22k") and "1k" not in data else 1000


VARIANTS: dict[str, Variant] = {}


def variant(img_size: int = 224, **weights: str) -> Callable[[_Build], _Build]:
    """Return a decorator that registers a function as the network of its name.

    Args:
        img_size: height and width of the images that it was trained for.
        weights: the URL of each published file, by the data it was trained on.
    """

    def register(build: _Build) -> _Build:
        name = build.__name__
        VARIANTS[name] = Variant(name, get_type_hints(build)["return"], build, img_size, weights)
        return build

    return register
