"""Recipes: the published defaults, the examples, and entries that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from natc.errors import ArgumentError

pytestmark = pytest.mark.quick

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_recipes(path: Path) -> None:
    from natc.vision import recipe

    chosen = recipe.read(path)
    assert chosen.output == f"runs/{path.stem}"
    assert recipe.from_builtins(recipe.to_builtins(chosen), "itself") == chosen


def test_the_published_recipe_is_the_default() -> None:
    from natc.vision import recipe

    chosen = recipe.read(next(path for path in EXAMPLES if path.stem == "imagenet_nat_mini"))
    optimizer, augmentation = chosen.optimizer, chosen.augmentation
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (
        1e-3,
        0.05,
        5,
    )
    assert (optimizer.warmup_learning_rate, optimizer.least_learning_rate) == (1e-6, 5e-6)
    assert (optimizer.warmup_epochs, optimizer.epochs, chosen.epochs) == (20, 300, 310)
    assert augmentation.rand_augment == "rand-m9-mstd0.5-inc1"
    assert (augmentation.mixup, augmentation.cutmix, augmentation.smoothing) == (0.8, 1.0, 0.1)
    assert (augmentation.erasing, augmentation.scale) == (0.25, (0.08, 1.0))
    assert (chosen.data.crop, chosen.seed, chosen.training.ema) == (0.875, 42, None)


@pytest.mark.parametrize(
    ("section", "entry", "value"),
    [
        ("optimizer", "learning_rate", -1),
        ("optimizer", "warmup_epochs", 3),
        ("optimizer", "learnig_rate", 1),
        ("augmentation", "scale", [0.5, 0.2]),
        ("augmentation", "flip", 2),
        ("training", "precision", "float8"),
        ("training", "batch_size", 3),
        ("data", "image_size", "large"),
    ],
)
def test_a_wrong_entry_is_named(
    content: dict[str, Any], section: str, entry: str, value: Any
) -> None:
    from natc.vision import recipe

    content.setdefault(section, {})[entry] = value
    with pytest.raises(ArgumentError, match=entry) as error:
        recipe.from_builtins(content, "recipe mine.yaml")
    assert str(error.value).startswith("recipe mine.yaml: ")


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    from natc.vision import recipe

    for text in (None, "a: [", "- 1\n", "\xff"):
        path = tmp_path / "recipe.yaml"
        if text is not None:
            path.write_text(text, "latin-1")
        with pytest.raises(ArgumentError, match="recipe.yaml"):
            recipe.read(path)


def test_numbers_with_exponents(tmp_path: Path) -> None:
    from natc.vision import recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {name: nat_mini, options: {layer_scale: 1e-5}}\n"
        'data: {train: "1e3"}\noptimizer: {learning_rate: 1.5E-4}\n'
    )
    chosen = recipe.read(path)
    assert (chosen.optimizer.learning_rate, chosen.data.train) == (1.5e-4, "1e3")
    assert chosen.model.options == {"layer_scale": 1e-5}


def test_differences_that_change_the_result(content: dict[str, Any]) -> None:
    from natc.vision import recipe

    before = recipe.from_builtins(content, "before")
    content["data"]["workers"] = 3
    content["output"] = "elsewhere"
    after = recipe.from_builtins(content, "after")
    assert recipe.differences(before, after) == []
    content["model"]["options"]["depths"] = [2, 1]
    changed = recipe.differences(before, recipe.from_builtins(content, "changed"))
    assert changed == ["model.options.depths: [1, 1], now [2, 1]"]
