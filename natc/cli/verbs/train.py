"""`natc train`: train a classifier with a recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natc.cli import output
from natc.cli.options import JsonOption, require_vision

if TYPE_CHECKING:
    from natc.vision.train import Progress


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")],
    directory: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for checkpoints, log and pictures.",
            show_default="the recipe's output",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train a classifier of images, or continue to.

    If the folder holds a checkpoint of the same recipe, training continues from it, with the
    losses that it would have had. For eight GPUs: torchrun --nproc-per-node 8 -m natc train
    RECIPE.
    """
    require_vision("train")
    from natc.vision import recipe as recipes
    from natc.vision.train import train as run

    chosen = recipes.read(recipe)
    if directory is not None:
        chosen = recipes.with_output(chosen, directory)
    output.require_writable(Path(chosen.output) / "checkpoint.pth")
    console = output.stderr()
    with _shown() as on_progress:
        summary = run(chosen, on_progress=on_progress, note=console.print)
    if summary is None:
        return
    if json:
        output.print_json(summary._asdict())
        return
    out = output.stdout()
    if summary.continued_from == summary.steps:
        out.print("all epochs were done before")
    if summary.top1 is not None:
        out.print(f"best epoch: top-1 {summary.top1:.2%}, top-5 {summary.top5:.2%}")
    out.print(f"{summary.steps - summary.continued_from} steps in {summary.seconds:.0f} s")
    out.print(f"folder: {summary.folder.absolute()}")


class _shown:
    """A context with a function that shows progress: a live bar, or a line for each epoch."""

    def __enter__(self) -> Callable[[Progress], None]:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=output.stderr(),
            disable=not sys.stderr.isatty(),
        )
        self.bar.__enter__()
        self.task = self.bar.add_task("", total=1)
        self.loss = ""
        return self.show

    def show(self, progress: Progress) -> None:
        """Show how far the training is."""
        top1 = "" if progress.top1 is None else f"best top-1 {progress.top1:.2%}"
        if progress.loss is not None:
            self.loss = f"loss {progress.loss:.4f}"
        text = " ".join(part for part in (self.loss, top1) if part)
        self.bar.update(self.task, completed=progress.step, total=progress.steps, description=text)
        if self.bar.disable and progress.loss is None:
            print(f"step {progress.step}/{progress.steps} {text}", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        self.bar.__exit__(None, None, None)
