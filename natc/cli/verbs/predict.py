"""`natc predict`: name the classes of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natc.cli import output
from natc.cli.options import JsonOption, VariantOption, require_vision


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A folder of natc train, a checkpoint, or a published network.",
        ),
    ],
    variant: VariantOption = None,
    count: Annotated[int, typer.Option("--top", min=1, help="Classes to name.")] = 5,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PNG",
            help="Picture of the images and their classes.",
            show_default="none",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Name the classes of images, with probabilities."""
    require_vision("predict")
    from natc.vision import pictures
    from natc.vision.networks import open_trained
    from natc.vision.predict import predict as run

    if picture is not None:
        output.require_writable(picture)
    trained = open_trained(model, variant)
    predictions = run(trained, [str(path) for path in images], count)
    if picture is not None:
        pictures.predictions(predictions, picture)
    if json:
        output.print_json([prediction._asdict() for prediction in predictions])
        return
    table = output.table("", "image", "class", "probability", right=("probability",))
    for prediction in predictions:
        for name, share in zip(prediction.classes, prediction.probabilities):
            table.add_row(prediction.image, name, f"{share:.1%}")
    output.print_table(table)
    if picture is not None:
        output.stdout().print(f"picture: {picture.absolute()}")
