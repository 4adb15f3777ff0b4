"""What DESIGN.md says of the modules: who imports whom."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import natc

PACKAGE = Path(natc.__file__).parent
DESIGN = Path(__file__).parents[2] / "DESIGN.md"
# As the page says: for everything, and for who reads or writes libraries.
COMMON = {
    "errors", "env", "spec", "operations", "window", "targets", "gpu", "elf", "files",
    "compilers", "workspace", "manifest", "replace",
}  # fmt: skip
# natc itself, which imports by name what is asked of it, and `python -m natc`.
ENTRANCES = {"__init__", "__main__"}


def arrows(text: str) -> set[tuple[str, str]]:
    """Return what each arrow of the picture leads from and to."""
    _, _, section = text.partition("## Who may import what")
    picture = re.search(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert picture
    found = set()
    for line in picture[1].splitlines():
        steps = [[name.strip() for name in step.split(",")] for step in line.split("─>")]
        for left, right in zip(steps, steps[1:]):
            found |= {(one, other) for one in left for other in right}
    return found


def reached(drawn: set[tuple[str, str]], start: str) -> set[str]:
    """Return all that arrows lead to from a module, over others or not."""
    found: set[str] = set()
    left = {start}
    while left:
        found |= left
        left = {other for one, other in drawn if one in left} - found
    return found - {start}


def imports() -> Iterator[tuple[str, str, Path]]:
    """Yield which part of natc imports which other one, and where."""
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named: list[str] = []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = [node.module]
                if node.module == "natc":
                    named = [f"natc.{alias.name}" for alias in node.names]
            for name in named:
                other = name.split(".")[1] if name.startswith("natc.") else part
                is_module = (PACKAGE / other).is_dir() or (PACKAGE / f"{other}.py").is_file()
                if other != part and is_module:
                    yield part, other, path


@pytest.fixture(scope="module")
def drawn() -> set[tuple[str, str]]:
    return arrows(DESIGN.read_text(encoding="utf-8"))


def test_every_import_follows_arrows(drawn: set[tuple[str, str]]) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE.parent)} imports {other}"
        for part, other, path in imports()
        if part not in ENTRANCES and other not in COMMON | reached(drawn, part)
    ]
    assert not wrong


def test_every_arrow_is_an_import(drawn: set[tuple[str, str]]) -> None:
    there = {(part, other) for part, other, _ in imports()}
    assert drawn - there == set()


def test_no_arrows_lead_back(drawn: set[tuple[str, str]]) -> None:
    assert not [arrow for arrow in drawn if arrow[0] in reached(drawn, arrow[1])]


def test_a_wrong_picture_is_found() -> None:
    text = "## Who may import what\n\n```\na, b ─> c\nc ─> d\n```\n"
    found = arrows(text)
    assert found == {("a", "c"), ("b", "c"), ("c", "d")}
    assert reached(found, "a") == {"c", "d"}
    assert reached({("a", "b"), ("b", "a")}, "b") == {"a"}
