"""A machine that other programs keep busy is noticed."""

from __future__ import annotations

import os

import pytest

from natc.host import detect
from natc.tune.measure.busy import load_note

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("load", "cores", "busy"), [(0.2, 2, False), (1.0, 2, False), (1.1, 2, True), (1.1, 16, False)]
)
def test_load_is_compared_with_the_cores(
    monkeypatch: pytest.MonkeyPatch, load: float, cores: int, busy: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(detect, "cores", lambda: cores)
    notes = load_note()
    assert bool(notes) == busy
    assert all(f"{load:.1f}" in note and f"{cores} cores" in note for note in notes)
