"""What a verb prints: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natc import files
from natc.errors import ArgumentError, NatcError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Wide enough that nothing is cut when the output goes to a file or a pipe.
_PIPE_WIDTH = 200


def stdout() -> Console:
    """Return the console for results."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return the console for progress and notes."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        width=None if terminal else _PIPE_WIDTH,
        highlight=False,
        # Text is text: a path with [brackets] is not markup.
        markup=False,
        emoji=False,
        soft_wrap=not terminal,
    )


def require_writable(path: Path) -> None:
    """Raise NatcError where a file cannot be written: found out now, not after minutes of work."""
    if path.is_dir():
        raise ArgumentError(f"{path} is a directory; name a file in it.")
    if not files.writable(path.parent):
        raise NatcError(f"directory {path.parent} is not writable, so {path.name} cannot be.")


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; msgspec structs, paths and tuples are understood."""
    import msgspec

    data = msgspec.json.encode(document, enc_hook=str)
    print(msgspec.json.format(data, indent=2).decode())


def table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table; the columns named in `right` are aligned right."""
    from rich import box
    from rich.table import Table

    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return result


def seconds_text(seconds: float) -> str:
    """Return a duration for people: 12.3 us, 4.56 ms, 1.23 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
