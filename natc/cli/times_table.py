"""The table of times that `natc bench` and `natc quickstart` print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from natc.cli import output
from natc.cli.output import seconds_text
from natc.records import shape_key

if TYPE_CHECKING:
    from natc.demo.times import Row


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows on stdout: one line for each shape and contestant, and the notes below."""
    columns = ("input", "contestant", "median", "quartiles", "ratio", "error")
    table = output.table(title, *columns, right=columns[2:])
    previous = None
    for row in rows:
        if previous not in (None, row.shape):
            table.add_section()
        table.add_row(
            shape_key(row.shape) if row.shape != previous else "",
            row.contestant,
            seconds_text(row.median_seconds) if row.median_seconds else "-",
            " .. ".join(map(seconds_text, row.quartile_seconds)) if row.quartile_seconds else "-",
            f"{row.ratio_to_first:.2f}" if row.ratio_to_first else "-",
            f"{row.max_error:.1e}" if row.max_error is not None else "-",
        )
        previous = row.shape
    console = output.stdout()
    console.print(table)
    console.print(
        "ratio: time divided by the first line's (above 1 is slower); "
        "error: largest, relative to the float64 reference."
    )
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(f"{row.contestant}: {row.note}", []).append(shape_key(row.shape))
    shapes = len({row.shape for row in rows})
    for note, where in notes.items():
        console.print(note if len(where) == shapes else f"{note} ({', '.join(where)})")


def progress() -> Callable[[str], None] | None:
    """Return a function that shows a sentence on the terminal, or None where there is none."""
    console = output.stderr()
    if not console.is_terminal:
        return None
    return lambda sentence: console.print(sentence, style="dim")
