"""`natc verify`: check libraries and packages without running their code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natc.cli import output
from natc.cli.options import JsonOption
from natc.store import workspace

if TYPE_CHECKING:
    from natc.package.verify import Report


def verify(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH",
            help="Directories, wheels, archives.",
            show_default="where natc finds libraries",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            help="Public ed25519 key (PEM) that must have signed them.",
            show_default="the keys in NATC_TRUSTED_KEYS",
        ),
    ] = None,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable",
            help="Demand that libraries in directories run on glibc 2.28, as packages do.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check libraries and packages without running them.

    Their hashes, manifests, symbols and signatures; exits with 1 if anything is wrong.
    """
    from natc.package.verify import verify_path
    from natc.store.signing import Verifier, trusted

    verifier = trusted() if key is None else Verifier(key)
    checked = list(paths or [])
    if not checked:
        checked = [place.path for place in workspace.library_places() if place.path.is_dir()]
    reports = [
        verify_path(path, key=verifier, portable=portable, may_be_empty=not paths)
        for path in checked
    ]
    ok = all(report.ok for report in reports)
    if json:
        output.print_json({"ok": ok, "checked": [
            {"path": report.path, "kind": report.kind, "ok": report.ok,
             "libraries": report.rows, "problems": report.problems}
            for report in reports
        ]})  # fmt: skip
    else:
        _show(reports, ok)
    if not ok:
        raise typer.Exit(1)


def _show(reports: list[Report], ok: bool) -> None:
    console = output.stdout()
    if not reports:
        console.print("no library directories")
    for report in reports:
        name = f"{report.path}: {report.kind}"
        table = output.table(name, "library", "target", "glibc", "signed", "state")
        for row in report.rows:
            signed = "yes" if row.signed else "-"
            state = "PROBLEM" if row.problems else "intact"
            table.add_row(row.library, row.target or "-", row.glibc or "-", signed, state)
        if report.rows:
            output.print_table(table)
        else:
            console.print(f"{name}, no libraries")
        for problem in report.problems:
            console.print(f"problem: {report.path}: {problem}", style="red")
        for row in report.rows:
            for problem in row.problems:
                console.print(f"problem: {row.library}: {problem}", style="red")
    count = sum(len(report.rows) for report in reports)
    if ok:
        console.print(f"nothing is wrong; libraries checked: {count}", style="green")
    else:
        wrong = sum(bool(row.problems) for report in reports for row in report.rows)
        console.print(f"libraries checked: {count}, with problems: {wrong}", style="red")
