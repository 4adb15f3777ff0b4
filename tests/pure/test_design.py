"""Imports follow the table "Who may import what" of DESIGN.md; tests/README.md lists all rooms."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import natc

PACKAGE = Path(natc.__file__).parent
TESTS = Path(__file__).parents[1]
DESIGN = TESTS.parent / "DESIGN.md"
VOCABULARY = {"errors", "env", "spec", "operations", "window", "targets", "version"}
# They import a room when a name of it is first used, whichever room that is.
ENTRANCES = {"__init__.py", "__main__.py", "tune/__init__.py"}
# Rooms with rows of their own inside a folder.
PARTS = {"tune.fleet", "tune.measure", "tune.search"}
TVM_ROOMS = {"compiler", "tune.search"}
NO_TORCH = VOCABULARY | {"store", "host"}

Row = dict[str, set[str]]


def table(text: str) -> Row:
    """Return the rooms that each room may import, as the table says."""
    _, _, section = text.partition("## Who may import what")
    section = section.partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]*\|([^|]*)\|$", section, re.MULTILINE)
    return {room: set(re.findall(r"`([\w.]+)`", allowed)) for room, allowed in rows}


def imported(source: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """Return the room of a module such as `natc.store.files`; None for natc itself."""
    names = module.split(".")[1:]
    if ".".join(names[:2]) in PARTS:
        return ".".join(names[:2])
    is_room = names and ((PACKAGE / names[0]).is_dir() or (PACKAGE / f"{names[0]}.py").is_file())
    return names[0] if is_room else None


@functools.cache
def imports() -> list[tuple[str, str, str]]:
    """List (room, dotted name, file) of every import in natc."""
    rows = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file in ENTRANCES:
            continue
        module = "natc." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in imported(path.read_text(encoding="utf-8")):
            rows.append((str(room_of(module)), name, file))
    return rows


@pytest.fixture(scope="module")
def allowed() -> Row:
    return table(DESIGN.read_text(encoding="utf-8"))


def test_every_room_has_a_row(allowed: Row) -> None:
    rooms = {
        path.name
        for path in PACKAGE.iterdir()
        if any(path.glob("*.py")) or any(path.glob("*/*.py"))
    }
    assert rooms | PARTS | {"nn"} == set(allowed)


def test_every_import_is_in_the_table(allowed: Row) -> None:
    wrong = []
    for room, name, file in imports():
        target = room_of(name) if name.startswith("natc.") else None
        if target in {None, room, *VOCABULARY}:
            continue
        if target not in allowed.get(room, set()):
            wrong.append(f"{file} imports {name}")
    assert not wrong


def test_every_entry_of_the_table_is_an_import(allowed: Row) -> None:
    pairs = {(room, room_of(name)) for room, name, _ in imports() if name.startswith("natc.")}
    stale = [(room, target) for room, row in allowed.items() for target in row]
    assert [pair for pair in stale if pair not in pairs] == []


def test_the_table_has_no_cycle(allowed: Row) -> None:
    rooms = dict(allowed)
    while rooms:
        bottom = {room for room, row in rooms.items() if not row & rooms.keys()}
        assert bottom, f"a cycle among {sorted(rooms)}"
        rooms = {room: row for room, row in rooms.items() if room not in bottom}


def test_only_the_compiler_and_the_search_import_tvm() -> None:
    wrong = [
        f"{file} imports {name}"
        for room, name, file in imports()
        if re.match(r"(tvm|xgboost)(\.|$)", name) and room not in TVM_ROOMS
    ]
    assert not wrong


def test_the_vocabulary_the_store_and_the_host_do_without_torch() -> None:
    wrong = [
        f"{file} imports {name}"
        for room, name, file in imports()
        if re.match(r"torch(\.|$)", name) and room in NO_TORCH
    ]
    assert not wrong


def test_a_wrong_table_is_found() -> None:
    text = "## Who may import what\n\n| `a` | text | `b`, `c.d` |\n| `b` | text | |\n\n## Next\n"
    assert table(text) == {"a": {"b", "c.d"}, "b": set()}
    assert list(imported("import natc.a\ndef f():\n    from natc.b import c\n")) == [
        "natc.a",
        "natc.b.c",
    ]
    assert (room_of("natc.tune.search.engine"), room_of("natc.tune.events")) == (
        "tune.search",
        "tune",
    )


# The table of tests/README.md


SOURCES = {
    path.relative_to(TESTS).as_posix(): path.read_text(encoding="utf-8")
    for path in TESTS.glob("*/test_*.py")
}


def rooms(page: Path) -> dict[str, tuple[str, str]]:
    """Return the second and third cell of each row whose first cell is a room."""
    rows = re.findall(r"^\| `([a-z.]+)` \|(.*)\|(.*)\|$", page.read_text("utf-8"), re.MULTILINE)
    return {room: (second, third) for room, second, third in rows}


def test_every_room_has_quick_tests_that_use_it() -> None:
    table = rooms(TESTS / "README.md")
    assert set(table) == set(rooms(DESIGN))
    for room, (quick, further) in table.items():
        files = re.findall(r"`([\w/]+\.py)`", quick)
        assert {*files, *re.findall(r"`([\w/]+\.py)`", further)} <= set(SOURCES), room
        for file in files:
            assert file.startswith("pure/") or "pytest.mark.quick" in SOURCES[file], file
        names = [name for file in files for name in imported(SOURCES[file])]
        names += [name for file in files for name in re.findall(r"natc\.[\w.]+", SOURCES[file])]
        assert any(f"{name}.".startswith(f"natc.{room}.") for name in names), room


def test_no_test_imports_another_test_module() -> None:
    modules = {Path(file).stem for file in SOURCES} | {"conftest"}
    wrong = [
        f"{file} imports {name}"
        for file, source in SOURCES.items()
        for name in imported(source)
        if name.split(".")[0] in modules
    ]
    assert not wrong
