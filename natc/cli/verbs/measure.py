"""`natc measure`: time the candidates of `natc tune --export` on a machine with the device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natc.cli import output
from natc.cli.options import JsonOption
from natc.errors import NatcError

if TYPE_CHECKING:
    from natc.tune.measure.measuring import Summary


def measure(
    directory: Annotated[Path, typer.Argument(help="Directory of natc tune --export.")],
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0.05,
            help="Stop after this many minutes, divided among searches.",
            show_default="when everything is measured",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Time candidates compiled elsewhere; needs no compiler. Run it again to continue."""
    from natc.cli.views.progress import watch
    from natc.tune.measure import measuring, rounds

    end = None if minutes is None else time.monotonic() + 60 * minutes
    places = rounds.find(directory)
    summaries, problems = [], []
    for number, place in enumerate(places):
        until = None
        if end is not None:
            # Later searches share the time that earlier ones did not need.
            until = time.monotonic() + (end - time.monotonic()) / (len(places) - number)
        try:
            with watch(show=not quiet) as on_event:
                summary = measuring.measure(place, until=until, on_event=on_event)
        except NatcError as error:
            if len(places) == 1:
                raise
            problems.append(str(error))
            output.stderr().print(f"problem: {error}")
            continue
        summaries.append(summary)
        if not json:
            output.stdout().print(_line(summary))
    incomplete = [summary for summary in summaries if not summary.complete]
    if json:
        output.print_json({"searches": summaries, "problems": problems})
    elif incomplete:
        output.stdout().print(f"Not all is measured; go on with: natc measure {directory}")
    else:
        output.stdout().print(f"On a machine with the compiler: natc tune --import {directory}")
    if problems:
        raise typer.Exit(1)


def _line(summary: Summary) -> str:
    text = f"{summary.name}: {summary.measured} of {summary.candidates} candidates measured in "
    text += f"{summary.seconds:.0f} s ({summary.failures} failed)"
    return f"{text}; {summary.message}" if summary.message else text
