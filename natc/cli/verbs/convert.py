"""`natc convert`: write a network's checkpoint in another layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from natc.cli import output
from natc.cli.options import JsonOption


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A file, a folder, a published network, or a name on the hub.",
        ),
    ],
    path: Annotated[
        Path, typer.Argument(metavar="OUT", help="A file for official, a folder for hf and timm.")
    ],
    to: Annotated[
        Literal["official", "hf", "timm"],
        typer.Option("--to", help="The authors' names, Transformers, or a local folder of timm."),
    ],
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="The network whose weights IN holds, such as dinat_tiny.",
            show_default="read from the name and the content of IN",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Convert a checkpoint of NAT or DiNAT to another layout.

    IN may be any file that natc.models.load takes: of a classifier, a detector, a segmenter or
    a training run. OUT is written in one step.
    """
    from natc.models import convert as convert_checkpoint

    report = convert_checkpoint(source, path, to, variant=variant).checkpoint
    if json:
        output.print_json({**dataclasses.asdict(report), "written": str(path), "to": to})
    else:
        console = output.stdout()
        console.print(str(report), markup=False, highlight=False)
        console.print(f"wrote {path} ({to})", markup=False, highlight=False)
