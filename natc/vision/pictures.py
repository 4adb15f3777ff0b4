"""Pictures of a training and of its result; they need matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from natc.store.files import write_atomically
from natc.vision.images import open_image
from natc.vision.predict import ImageClasses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 40
_COUNTED = 12


def curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss and the learning rate of each step, and the accuracy after each epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = [row for row in rows if "learning_rate" in row]
    epochs = [row for row in rows if "top1" in row]
    numbers = [row["step"] for row in steps]
    losses.plot(numbers, [row["loss"] for row in steps], linewidth=0.8, label="training loss")
    handles = list(losses.lines)
    if epochs:
        ends = [row["step"] for row in epochs]
        losses.plot(ends, [row["loss"] for row in epochs], "C1.-", label="validation loss")
        shares = losses.twinx()
        shares.plot(ends, [100 * row["top1"] for row in epochs], "C2.-", label="top-1")
        shares.set(ylabel="validation top-1 [%]", ylim=(0, 100))
        handles = [*losses.lines, *shares.lines]
    losses.set(ylabel="loss", ylim=(0, None))
    losses.legend(handles=handles, loc="center right")
    rates.plot(numbers, [row["learning_rate"] for row in steps], "C3")
    rates.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    _write(figure, path)


def confusion(counts: Tensor, classes: Sequence[str], title: str, path: Path) -> None:
    """Draw which classes are taken for which, as shares of each class.

    counts: `[classes, classes]`, images by class and by the class that the network named.
    """
    from matplotlib.figure import Figure

    side = min(12.0, 4 + 0.25 * len(classes))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(100 * shares.numpy(), vmin=0, vmax=100, cmap="Blues")
    figure.colorbar(image, label="images of the class [%]", shrink=0.8)
    axes.set(title=title, xlabel="class that the network named", ylabel="class of the image")
    if len(classes) <= _NAMED:
        places = range(len(classes))
        turned = max(map(len, classes)) > 3
        axes.set_xticks(places, classes, rotation=90 if turned else 0)
        axes.set_yticks(places, classes)
    if len(classes) <= _COUNTED:
        for row, line in enumerate(counts.tolist()):
            for column, count in enumerate(line):
                if count:
                    dark = shares[row, column] > 0.5
                    axes.text(
                        column, row, str(count), ha="center", va="center",
                        color="white" if dark else "black",
                    )  # fmt: skip
    _write(figure, path)


def predictions(results: Sequence[ImageClasses], path: Path) -> None:
    """Draw each image beside its likeliest classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6 * len(results)), layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False, width_ratios=(1, 1.6))
    for (picture, bars), prediction in zip(rows, results):
        picture.imshow(open_image(prediction.image))
        picture.set_axis_off()
        picture.set_title(Path(prediction.image).name, fontsize=9)
        # The likeliest class on top.
        places = range(len(prediction.classes))
        percent = [100 * share for share in prediction.probabilities]
        bars.barh(places, percent)
        bars.set_yticks(places, prediction.classes)
        bars.invert_yaxis()
        bars.set(xlim=(0, 100), xlabel="probability [%]")
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
