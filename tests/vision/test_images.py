"""Labelled images: folders, digits, damaged files, and the order of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from natc.errors import DataError


def dataset(source: Path, content: dict[str, Any]) -> Any:
    from natc.vision import images, recipe

    transform = images.training_transform(recipe.from_builtins(content, "recipe"))
    return images.ImageDataset(images.open_images(str(source)), transform, seed=3)


def test_a_folder_for_each_class(folder: Path) -> None:
    from natc.vision.images import open_images

    images = open_images(str(folder / "val"))
    assert images.classes == ["day", "night"] and images.labels == [0, 0, 0, 1, 1, 1]
    # A label is an index into the network's classes.
    assert open_images(str(folder / "val"), ["dusk", "night", "day"]).labels == [2, 2, 2, 1, 1, 1]


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    from natc.vision.images import open_images

    with pytest.raises(DataError, match="'night'.*none of the 2 classes"):
        open_images(str(folder / "val"), ["day", "dusk"])
    with pytest.raises(DataError, match="absent"):
        open_images(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no images"):
        open_images(str(tmp_path))
    (tmp_path / "stray.png").write_bytes(b"")
    with pytest.raises(DataError, match="stray.png has no class"):
        open_images(str(tmp_path))
    with pytest.raises(DataError, match="digits:val"):
        open_images("digits:val")


def test_digits_are_divided_once() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install scikit-learn")
    from natc.vision.images import open_images

    train, test = open_images("digits:train"), open_images("digits:test")
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert set(test.labels) == set(range(10))
    assert int(max(image.max() for image in train.images)) == 255


@pytest.mark.parametrize("end", [0, 40, -600], ids=["empty", "header", "cut off"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(
    folder: Path, tmp_path: Path, content: dict[str, Any], end: int, workers: int
) -> None:
    from natc.vision.batches import Sharing, evaluation_batches

    (tmp_path / "cat").mkdir()
    whole = (folder / "val" / "day" / "0.png").read_bytes()
    (tmp_path / "cat" / "good.png").write_bytes(whole)
    (tmp_path / "cat" / "bad.png").write_bytes(whole[:end])
    with pytest.raises(DataError, match=r"cat/bad\.png cannot be read") as error:
        list(evaluation_batches(dataset(tmp_path, content), Sharing(2), workers))
    assert "\n" not in str(error.value)


def test_an_image_does_not_depend_on_what_was_read_before(
    folder: Path, content: dict[str, Any]
) -> None:
    images = dataset(folder / "train", content)
    first = images[1, 5][0]
    others = [images[0, 5][0], images[1, 4][0], images[2, 5][0]]
    assert torch.equal(images[1, 5][0], first)
    assert not any(torch.equal(first, image) for image in others)


def test_processes_share_a_step(folder: Path, content: dict[str, Any]) -> None:
    from natc.vision.batches import Sharing, evaluation_batches, training_batches

    images = dataset(folder / "train", content)
    images.transform = lambda picture: torch.tensor(list(picture.getpixel((0, 0))))

    def pixels(sharing: Sharing, first: int = 0) -> list[torch.Tensor]:
        return [batch for batch, _ in training_batches(images, sharing, 1, first, 0)]

    alone = pixels(Sharing(8))
    assert len(alone) == 3
    halves = [pixels(Sharing(4, 1, process, 2)) for process in (0, 1)]
    assert all(torch.equal(torch.cat(pair), whole) for *pair, whole in zip(*halves, alone))
    # Forward passes of one step follow each other, and a step can be the first.
    assert torch.equal(torch.cat(pixels(Sharing(4, 2))), torch.cat(alone))
    assert torch.equal(torch.cat(pixels(Sharing(4, 2), 1)), torch.cat(alone[1:]))
    # Evaluation sees all images, once.
    seen = [
        batch for process in (0, 1, 2)
        for batch, _ in evaluation_batches(images, Sharing(4, 1, process, 3), 0)
    ]  # fmt: skip
    assert sum(map(len, seen)) == len(images) == 26
