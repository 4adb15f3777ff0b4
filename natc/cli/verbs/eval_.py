"""`natc eval`: measure a classifier on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natc.cli import output
from natc.cli.options import JsonOption, VariantOption, require_vision
from natc.errors import ArgumentError


def eval_(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder of natc train, a checkpoint, or a published network."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with a folder of images for each class, or digits:test.",
            show_default="the validation images of the training",
        ),
    ] = None,
    variant: VariantOption = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images of a forward pass.")
    ] = 64,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that read images.")
    ] = 0,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PNG",
            help="Picture of the confusion matrix.",
            show_default="confusion.png in the folder of the training, else none",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Evaluate a classifier: top-1, top-5, images a second.

    Classes are folders, in the order of their names. MODEL may be anything that natc.models.load
    takes.
    """
    require_vision("eval")
    import torch

    from natc.vision import pictures
    from natc.vision.batches import Sharing, evaluation_batches
    from natc.vision.evaluate import evaluate
    from natc.vision.images import ImageDataset, evaluation_transform, open_images, require_classes
    from natc.vision.networks import open_trained

    trained = open_trained(model, variant)
    if data is None:
        data = trained.recipe.data.validation if trained.recipe else None
        if data is None:
            raise ArgumentError(f"{model} names no validation images; name a folder as DATA.")
    images = open_images(data, trained.classes)
    require_classes(images, trained.network.num_classes)
    if picture is None and Path(model).is_dir() and trained.recipe:
        picture = Path(model) / "confusion.png"
    if picture is not None:
        output.require_writable(picture)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = evaluation_transform(trained.image_size, trained.crop)
    batches = evaluation_batches(ImageDataset(images, transform, 0), Sharing(batch_size), workers)
    result = evaluate(trained.network.to(device), batches, len(images.classes), device)
    if picture is not None:
        title = f"{trained.name} on {data}: top-1 {result.top1:.2%}"
        pictures.confusion(result.confusion, images.classes, title, picture)
    if json:
        document = result._asdict()
        document["confusion"] = result.confusion.tolist()
        output.print_json({**document, "classes": images.classes, "picture": picture})
        return
    console = output.stdout()
    console.print(f"{trained.name} on {result.images} images of {data}")
    console.print(f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%}, loss {result.loss:.4f}")
    if result.images_per_second is not None:
        console.print(f"{result.images_per_second:.0f} images/s in batches of {batch_size}")
    if picture is not None:
        console.print(f"picture: {picture.absolute()}")
