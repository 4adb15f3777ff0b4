from __future__ import annotations

import re
from pathlib import Path

import pytest

import natc
from natc import env

SOURCES = [path.read_text("utf-8") for path in Path(natc.__file__).parent.rglob("*.py")]


def test_every_variable_that_natc_speaks_of_is_declared() -> None:
    used = {name for text in SOURCES for name in re.findall(r"\bNATC_[A-Z_]+\b", text)}
    assert used == {variable.name for variable in env.ALL}


def test_only_one_module_reads_them() -> None:
    assert not any(re.search(r"(environ|getenv)[^\n]*NATC_", text) for text in SOURCES)


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
