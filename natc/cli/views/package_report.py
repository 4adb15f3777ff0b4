"""The output of `natc package`: the plan, the progress, and the sizes of the packages."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natc.cli import output
from natc.operations import contents

if TYPE_CHECKING:
    from natc.package.assemble import Names
    from natc.package.jobs import Job
    from natc.package.pieces import Piece
    from natc.package.sizes import Size


_UNPACKED = "To use {}: unpack it, and name the directory in NATC_LIB_PATH"
# How to use a package of each format; packages for the hub are uploaded.
_USE = {"wheel": "To use it: pip install {}", "archive": _UNPACKED, "zip": _UNPACKED}


@contextlib.contextmanager
def progress(todo: int, reused: int) -> Iterator[Callable[[Job], None]]:
    """Yield a function that shows each new library: in a bar, or as a line in a pipe.

    todo: libraries to build; reused: libraries that are there already.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = output.stderr()
    if reused:
        console.print(f"{reused} libraries are built already")
    start, done = time.monotonic(), 0
    bar = Progress(BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
                   "{task.description}", console=console,
                   disable=not (console.is_terminal and todo))  # fmt: skip
    task = bar.add_task("building", total=todo)

    def report(job: Job) -> None:
        nonlocal done
        done += 1
        bar.update(task, completed=done, description=f"built {job.name}")
        if bar.disable:
            console.print(f"built {done}/{todo} {job.name} ({time.monotonic() - start:.0f} s)")

    with bar:
        yield report


def show_plan(
    jobs: Sequence[Job], tools: str, source: Path | None, forms: Sequence[str], *, json: bool
) -> None:
    """Show what would be built; source: the directory that would be packed instead, or None."""
    from natc.package.jobs import built

    rows: list[dict[str, Any]] = [
        {
            "library": job.name,
            "archs": [target.arch for target in job.targets],
            "operations": job.families,
            "built": built(job, tools) is not None,
        }
        for job in jobs
    ]
    if json:
        output.print_json({"from": source, "formats": forms, "libraries": rows})
        return
    for row in rows:
        state = "built already" if row["built"] else "to build"
        output.stdout().print(f"{row['library']}: {', '.join(row['archs'])}; {state}")
    if source is not None:
        output.stdout().print(f"would pack {source} as {', '.join(forms)}")
    else:
        missing = sum(not row["built"] for row in rows)
        output.stdout().print(
            f"would build {missing} of {len(rows)} libraries and write {', '.join(forms)}"
        )


def show(
    written: Sequence[tuple[str, Path]],
    pieces: Sequence[Piece],
    names: Names,
    *,
    built: int,
    reused: int,
    json: bool,
) -> None:
    """Show the packages, (format, path) each, and the code in them by architecture."""
    from natc.package.pieces import archs_of
    from natc.package.sizes import sizes
    from natc.store.manifest import file_sha256

    files = [
        {
            "format": form,
            "path": path,
            "bytes": _bytes(path),
            "sha256": None if path.is_dir() else file_sha256(path),
        }
        for form, path in written
    ]
    parts: dict[str, Size] = sizes(pieces)
    if json:
        output.print_json(
            {
                "name": names.distribution,
                "version": names.version,
                "target": names.target,
                "platform": names.tag,
                "archs": archs_of(pieces),
                "files": files,
                "sizes": parts,
                "built": built,
                "reused": reused,
                "libraries": [
                    {
                        "spec": piece.manifest.spec,
                        "archs": piece.manifest.target.archs,
                        "operations": contents(piece.spec, piece.manifest.entries),
                        "sha256": piece.manifest.sha256,
                    }
                    for piece in pieces
                ],
            }
        )
        return
    console = output.stdout()
    table = output.table(
        "1 library" if len(pieces) == 1 else f"{len(pieces)} libraries",
        "code for",
        "bytes",
        "compressed",
        right=("bytes", "compressed"),
    )
    for name, size in parts.items():
        table.add_row(name, f"{size.bytes:,}", f"{size.compressed:,}")
    output.print_table(table)
    for file in files:
        console.print(f"wrote {file['path']} ({file['bytes']:,} bytes)")
    for form, path in written:
        if form in _USE:
            console.print(_USE[form].format(shlex.quote(str(path))))


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
