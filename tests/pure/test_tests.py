"""The tests themselves: tests/README.md names quick tests of every room of natc."""

from __future__ import annotations

import re
from pathlib import Path

from support.imports import imported

TESTS = Path(__file__).parents[1]
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
    assert set(table) == set(rooms(TESTS.parent / "DESIGN.md"))
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
