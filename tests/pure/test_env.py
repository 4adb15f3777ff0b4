from __future__ import annotations

import re
from pathlib import Path

import pytest

import natc
from natc import env


def test_every_variable_that_natc_speaks_of_is_declared() -> None:
    package = Path(natc.__file__).parent
    used = set()
    for path in package.rglob("*.py"):
        used |= set(re.findall(r"\bNATC_[A-Z_]+\b", path.read_text(encoding="utf-8")))
    assert used == {variable.name for variable in env.ALL}


def test_only_one_module_reads_them() -> None:
    package = Path(natc.__file__).parent
    readers = {
        path.name
        for path in package.rglob("*.py")
        if re.search(r"(environ|getenv)[^\n]*NATC_", path.read_text(encoding="utf-8"))
    }
    assert readers == set()


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("TRUE", True), (" on ", True), ("0", False), ("", False)]
)
def test_flags(monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
    monkeypatch.setenv("NATC_STRICT", value)
    assert env.NATC_STRICT.flag() is on


def test_an_empty_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_CC", "")
    assert env.NATC_CC.get() is None
    monkeypatch.delenv("NATC_CC")
    assert env.NATC_CC.get() is None
