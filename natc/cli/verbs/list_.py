"""`natc list`: the schedules, libraries and tuning logs that this machine has."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from natc.cli import output
from natc.cli.options import JsonOption, WaitOption
from natc.errors import RecordError
from natc.operations import FORWARD, contents
from natc.store import files, schedules, workspace
from natc.store.records import Environment, Trial, read_log
from natc.store.schedules import Schedule


def list_(
    prune: Annotated[
        bool,
        typer.Option("--prune", help="First remove files that serve no call from natc's cache."),
    ] = False,
    wait: WaitOption = None,
    json: JsonOption = False,
) -> None:
    """List schedules, libraries and tuning logs."""
    from natc import runtime

    files.wait_at_most(wait)
    removed = runtime.prune() if prune else []
    document = {
        "schedules": schedule_rows(),
        "libraries": _libraries(),
        "logs": log_rows(),
    }
    if json:
        rows_removed = [{"path": item.path, "reason": item.reason} for item in removed]
        output.print_json({"removed": rows_removed, **document} if prune else document)
        return
    console = output.stdout()
    for item in removed:
        console.print(f"removed {item.path}: {item.reason}")
    if prune and not removed:
        console.print("nothing to remove")
    for title, rows in document.items():
        if not rows:
            console.print(f"no {title}")
        for where, group in _by_directory(rows):
            output.print_table(_table(f"{title} in {where}", group))
    problems = [
        problem for rows in document.values() for row in rows for problem in row["problems"]
    ]
    for problem in problems:
        output.stderr().print(f"problem: {problem}")
    if problems:
        note_leftovers()


def note_leftovers() -> None:
    """Print on stderr how to remove leftovers from natc's cache, if there are any."""
    from natc import runtime

    count = len(runtime.leftovers())
    if count:
        what = "1 leftover" if count == 1 else f"{count} leftovers"
        text = f"note: {what} in natc's cache can be removed: natc list --prune"
        output.stderr().print(text)


def schedule_rows() -> list[dict[str, Any]]:
    """Return each schedule file, with its problems, as values for JSON."""
    rows = []
    for path, schedule, problem in schedules.list_schedules():
        measured = schedule.measured if schedule else None
        predicted = schedule.predicted if schedule else None
        default = _is_default(schedule) if schedule else None
        rows.append(
            {
                **_kernel(path),
                "target": path.parent.name,
                "path": path,
                "speedup": schedule.speedup if schedule and not default else None,
                "gain": measured.gain if measured else None,
                "predicted_by": predicted.model if predicted else None,
                "default": default,
                "trials": measured.trials if measured else None,
                "seconds": measured.seconds if measured else None,
                "created": schedule.created if schedule else None,
                "problems": [problem] if problem else [],
            }
        )
    return rows


def _is_default(schedule: Schedule) -> bool | None:
    """Return whether a schedule has the default decisions; None if that is not known.

    It takes the compiler some seconds, so only a CPU's schedule whose gain was never proven is
    compared.
    """
    if schedule.measured is None or schedule.measured.gain is not None:
        return False
    if not schedule.target.startswith("llvm") or importlib.util.find_spec("tvm") is None:
        return None
    from natc.tune.search.recheck import is_default

    return is_default(schedule)


def _kernel(path: Path) -> dict[str, str]:
    """Return the kernel and the operation that a schedule or a log is named after."""
    spec, _, operation = path.stem.partition(".")
    return {"spec": spec, "operation": operation or FORWARD}


def _libraries() -> list[dict[str, Any]]:
    from natc import runtime

    sources = workspace.library_sources()
    rows: list[dict[str, Any]] = [
        {
            "library": library.path.name,
            "spec": library.manifest.spec,
            "target": ", ".join(target.name for target in library.targets),
            "operations": contents(library.spec, library.manifest.entries),
            "path": library.path,
            "from": sources.get(library.path.parent),
            "built": library.manifest.built_at,
            "problems": [] if library.path.is_file() else [f"{library.path} is missing"],
        }
        for library in runtime.kernels()
    ]
    unknown = dict.fromkeys(("library", "spec", "target", "operations", "path", "from", "built"))
    rows += [
        {
            **unknown,
            "path": rejection.path,
            "from": sources.get(rejection.path.parent) or sources.get(rejection.path),
            "problems": [f"{rejection.path}: {rejection.reason}"],
        }
        for rejection in runtime.problems()
    ]
    return rows


def log_rows() -> list[dict[str, Any]]:
    """Return each tuning log, with its problems, as values for JSON."""
    rows = []
    for path in workspace.log_files():
        try:
            records, unreadable = read_log(path)
            problems = list(map(str, unreadable))
        except RecordError as error:
            records, problems = [], [str(error)]
        trials = [record for record in records if isinstance(record, Trial)]
        rows.append(
            {
                **_kernel(path),
                "target": path.parent.name,
                "path": path,
                "sessions": sum(isinstance(record, Environment) for record in records),
                "trials": len(trials),
                "failures": sum(trial.error is not None for trial in trials),
                "problems": problems,
            }
        )
    return rows


# Fields without a column: directories are titles, times go by shape, problems come last.
_NO_COLUMN = (
    "path", "from", "operation", "gain", "predicted_by", "default", "seconds", "problems"
)  # fmt: skip
_NUMBERS = ("speedup", "sessions", "trials", "failures")


def _by_directory(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each directory, with the reason why natc looks there, and its rows."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        # Schedules and logs lie in a folder for each target, which has a column.
        directory = row["path"].parent.parent if "from" not in row else row["path"].parent
        source = f" ({row['from']})" if row.get("from") else ""
        groups.setdefault(f"{directory}{source}", []).append(row)
    yield from groups.items()


def _table(title: str, rows: list[dict[str, Any]]) -> Any:
    # A library's file is named after its spec.
    hidden = (*_NO_COLUMN, "spec") if "library" in rows[0] else _NO_COLUMN
    columns = [name for name in rows[0] if name not in hidden]
    result = output.table(title, *columns, right=_NUMBERS)
    for row in rows:
        result.add_row(*(_cell(name, row) for name in columns))
    return result


def _cell(name: str, row: dict[str, Any]) -> str:
    value = row[name]
    if name == "speedup" and row["default"]:
        return "default"
    if value is None:
        # Files that cannot be read have only a name.
        return row["path"].name if name in ("spec", "library") else "-"
    if name == "spec" and row.get("operation", FORWARD) != FORWARD:
        return f"{value}.{row['operation']}"
    if name == "speedup":
        gain = row["gain"]
        bounds = f"{gain.low:.2f}..{gain.high:.2f}" if gain else "not proven"
        if row["predicted_by"]:
            bounds = "predicted"
        return f"{value:.2f}x ({bounds})"
    if name in ("created", "built"):
        return str(value)[:10] or "-"
    if isinstance(value, list):
        return ", ".join(value)
    return str(value)
