"""The table of times that `natc bench` and `natc quickstart` print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from natc.cli import output
from natc.cli.output import seconds_text
from natc.store.records import shape_key

if TYPE_CHECKING:
    from natc.bench.results import Ceilings, ResultRow


def show(title: str, rows: Sequence[ResultRow], ceilings: Ceilings | None = None) -> None:
    """Print rows on stdout: one line for each shape and contestant, and the notes below.

    ceilings: what the floors of the rows were made of.
    """
    columns = ("input", "contestant", "median", "quartiles", "ratio", "error")
    table = output.table(title, *columns, right=columns[2:])
    first, previous = rows[0].contestant, None
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        if row.shape != previous:
            base = row.median_seconds if row.contestant == first else None
        table.add_row(
            shape_key(row.shape) if row.shape != previous else "",
            row.contestant,
            seconds_text(row.median_seconds) if row.median_seconds else "-",
            " .. ".join(map(seconds_text, row.quartile_seconds)) if row.quartile_seconds else "-",
            f"{row.ratio_to_first:.2f}" if row.ratio_to_first else "-",
            f"{row.max_error:.1e}" if row.max_error is not None else "-",
        )
        previous = row.shape
        if following is not None and following.shape == row.shape:
            continue
        if row.floor_seconds:
            ratio = f"{row.floor_seconds / base:.2g}" if base else "-"
            table.add_row("", "floor", seconds_text(row.floor_seconds), "-", ratio, "-")
        if following is not None:
            table.add_section()
    console = output.stdout()
    console.print(table)
    console.print(
        "ratio: time divided by the first line's (above 1 is slower); "
        "error: largest, relative to the float64 reference."
    )
    if ceilings is not None:
        console.print(
            "floor: the longer of moving each tensor once and computing what the result needs, at"
        )
        for line in _ceiling_lines(ceilings):
            console.print(line)
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(f"{row.contestant}: {row.note}", []).append(shape_key(row.shape))
    shapes = len({row.shape for row in rows})
    for note, where in notes.items():
        console.print(note if len(where) == shapes else f"{note} ({', '.join(where)})")


def _ceiling_lines(ceilings: Ceilings) -> list[str]:
    at_least = "at least " if ceilings.lower_bound else ""
    rates = {"memory": f"{ceilings.bytes_per_second / 1e9:.3g} GB/s"}
    for name, rate in ceilings.operations_per_second.items():
        rates[name] = f"{at_least}{rate / 1e9:.3g} GFLOP/s"
    lines = [f"  {rate}, {name}" for name, rate in rates.items()]
    return [*lines, f"  measured in the same run: {ceilings.method}"]


def progress() -> Callable[[str], None] | None:
    """Return a function that shows a sentence on the terminal, or None where there is none."""
    console = output.stderr()
    if not console.is_terminal:
        return None
    return lambda sentence: console.print(sentence, style="dim")
