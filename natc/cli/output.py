"""Printing: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from natc.errors import ArgumentError, NatcError
from natc.store import files

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# The shell's exit code for a program that SIGPIPE ends, as in `| head`.
PIPE_CLOSED = 141
# Wider than any line: in a file or a pipe, nothing is wrapped or cut.
_PIPE_WIDTH = 100_000


def stdout() -> Console:
    """Return the console for results."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return the console for progress and notes."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            _closed(PIPE_CLOSED)

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Output(
        stderr=stderr,
        # The reader of a pipe expects plain text, even if FORCE_COLOR is set.
        force_terminal=terminal,
        width=None if terminal else _PIPE_WIDTH,
        highlight=False,
        # Text is text: a path with [brackets] is not markup.
        markup=False,
        emoji=False,
        soft_wrap=not terminal,
    )


def prepare() -> None:
    """Make stdout and stderr safe to write to; raises NatcError if stdout is closed."""
    # A file that natc opens would get the number of a closed stream, and what compilers print.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    is_closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # A path may hold bytes that are no text, and the terminal may know fewer letters.
            stream.reconfigure(errors="backslashreplace")
    if is_closed:
        raise NatcError("stdout is closed; if nobody reads it, send it to /dev/null.")


def flush() -> None:
    """Flush stdout; exit silently if its reader is gone, and with an error if it is full."""
    try:
        sys.stdout.flush()
    except OSError as error:
        give_up(error)


def give_up(error: OSError) -> NoReturn:
    """Exit after a failed write, with the system's reason unless the reader is gone."""
    if isinstance(error, BrokenPipeError):
        _closed(PIPE_CLOSED)
    where = error.filename or "the output"
    print(f"natc: error: {where} cannot be written: {files.reason(error)}.", file=sys.stderr)
    _closed(1)


def _closed(code: int) -> NoReturn:
    # When Python ends it flushes stdout, and would complain.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    raise SystemExit(code)


def require_writable(path: Path) -> None:
    """Raise NatcError if a file cannot be written: now, not after minutes of work."""
    if path.is_dir():
        raise ArgumentError(f"{path} is a directory; name a file in it.")
    if not files.writable(path.parent):
        raise NatcError(f"directory {path.parent} is not writable, so {path.name} cannot be.")


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; msgspec structs, paths and tuples are understood."""
    import msgspec

    try:
        text = msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2).decode()
    except UnicodeEncodeError:
        # A path has bytes that are no text; `json` writes them as Python has them.
        text = json.dumps(msgspec.to_builtins(document, enc_hook=str), indent=2)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _closed(PIPE_CLOSED)


def table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table; the columns named in `right` are aligned right.

    On a terminal, values that have no room are folded; in a pipe, the table has no lines.
    """
    from rich import box
    from rich.table import Table

    terminal = sys.stdout.isatty()
    result = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if terminal else None,
        # Two blanks between columns in either case, so that five columns fit into 80.
        padding=(0, 1, 0, 0) if terminal else (0, 2, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for number, column in enumerate(columns):
        # The first column names the row, and is folded last.
        result.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=number == 0,
        )
    return result


def print_table(table: Table) -> None:
    """Print a table on stdout; if its words do not fit, print a line for each value."""
    console = stdout()
    unlimited = console.options.update(width=_PIPE_WIDTH)
    if console.measure(table, options=unlimited).minimum <= console.width:
        console.print(table)
        return
    console.print(table.title or "", style="bold")
    name, *columns = table.columns
    for label, *cells in zip(name.cells, *(column.cells for column in columns), strict=True):
        console.print(label)
        for column, cell in zip(columns, cells, strict=True):
            if cell not in ("", "-"):
                console.print(f"  {column.header}: {cell}")


def seconds_text(seconds: float) -> str:
    """Return a duration for people: 12.3 us, 4.56 ms, 1.23 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
