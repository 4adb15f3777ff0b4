"""A name has one meaning: natc defines no class twice and uses no file name three times."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import natc

PACKAGE = Path(natc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Classes of NATTEN, which `natc.compat` defines for each of NATTEN's interfaces.
NATTEN = {f"NeighborhoodAttention{rank}D" for rank in (1, 2, 3)}


def class_names(source: str) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def test_no_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for name in class_names(path.read_text(encoding="utf-8")):
            places[name].append(str(path.relative_to(PACKAGE)))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert {name: twice[name] for name in twice.keys() - NATTEN} == {}


def test_no_file_name_stands_three_times() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            places[path.name].append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 2} == {}


def test_nested_classes_count() -> None:
    assert class_names("class A:\n    def f(self):\n        class A: ...\n") == ["A", "A"]
