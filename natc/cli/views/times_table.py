"""The table of times that `natc bench` and `natc quickstart` print."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from natc.cli import output
from natc.cli.output import seconds_text

if TYPE_CHECKING:
    from natc.bench.results import Results, Row

_NARROW = 76


def show(results: Results) -> None:
    """Print results on stdout: a table with a line for each contestant, and the notes below."""
    console = output.stdout()
    columns = ["contestant", "median", "quartiles", "ratio", "peak", "error"]
    if console.width < _NARROW:
        columns.remove("quartiles")
    if any(row.device_seconds for row in results.rows):
        columns.insert(2, "device")
    table = output.table(results.title, *columns, right=tuple(columns[1:]))
    first = results.rows[0].contestant
    for problem in results.problems:
        rows = results.of(problem)
        table.add_section()
        table.add_row(results.label(problem))
        for name, row in rows.items():
            cells = cells_of(row)
            table.add_row(f"  {name}", *(cells[column] for column in columns[1:]))
        least = rows[first].floor_seconds
        if least:
            base = rows[first].seconds
            cells = {
                "median": seconds_text(least),
                "ratio": f"{least / base:.2g}" if base else "-",
            }
            table.add_row("  floor", *(cells.get(column, "-") for column in columns[1:]))
    output.print_table(table)
    for line in explanations(results):
        console.print(line)
    for sentence in results.busy:
        console.print(f"busy machine: {sentence}", style="bold yellow")


def cells_of(row: Row) -> dict[str, str]:
    """Return the text of each column of a row; a median gets a ? if its samples disagree."""
    from natc.bench.results import DISAGREEMENT

    doubt = " ?" if row.spread > DISAGREEMENT else ""
    return {
        "median": seconds_text(row.median_seconds) + doubt if row.median_seconds else "-",
        "device": seconds_text(row.device_seconds) if row.device_seconds else "-",
        "quartiles": " .. ".join(map(seconds_text, row.quartile_seconds or ())) or "-",
        "ratio": f"{row.ratio_to_first:.2f}" if row.ratio_to_first else "-",
        "peak": f"{100 * row.share_of_peak:.2g}%" if row.share_of_peak else "-",
        "error": f"{row.max_error:.1e}" if row.max_error is not None else "-",
    }


def explanations(results: Results) -> list[str]:
    """Return lines that explain the columns, the ceilings, and the notes of the rows."""
    lines = [
        "ratio: time divided by the first line's (above 1 is slower); error: the largest, "
        "relative to the float64 reference.",
    ]
    if results.ceilings is not None:
        lines += [
            "peak: useful operations as a share of the first rate of operations below; floor: "
            "the longer of moving each tensor once and computing the result, at",
            *(f"  {line}" for line in results.ceilings.lines()),
            f"  measured in the same run: {results.ceilings.method}",
        ]
    notes: dict[str, list[str]] = {}
    for row in results.rows:
        if row.note:
            notes.setdefault(f"{row.contestant}: {row.note}", []).append(
                results.label(row.problem)
            )
    for note, labels in notes.items():
        everywhere = len(labels) == len(results.problems)
        lines.append(note if everywhere else f"{note} ({', '.join(labels)})")
    return lines


def progress() -> Callable[[str], None] | None:
    """Return a function that shows a sentence on the terminal; None if stderr is no terminal."""
    console = output.stderr()
    if not console.is_terminal:
        return None
    return lambda sentence: console.print(sentence, style="dim")
