"""Runs natc's command line in the process of a test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from natc import runtime
from natc.cli.main import main


class Result(NamedTuple):
    """Exit status, and the text on stdout and stderr."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Natc:
    """Runs natc's command line, as `natc("tune", "--kernel", "7")`."""

    run: Callable[..., Result]

    def __call__(self, *words: str) -> Result:
        return self.run(*words)

    def json(self, *words: str, code: int = 0) -> Any:
        """Run with --json, check the exit status, and return the document."""
        result = self(*words, "--json")
        assert result.code == code, result
        return json.loads(result.out)

    def refused(self, *words: str, code: int = 2) -> str:
        """Run words that are refused with nothing on stdout; return the line on stderr."""
        result = self(*words)
        assert (result.code, result.out) == (code, ""), result
        assert result.err.startswith("natc: error: ") and result.err.count("\n") == 1, result
        return result.err


def in_this_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Natc:
    """Return the command line, run in this process; each command looks for libraries anew."""

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["natc", *words])
        capsys.readouterr()
        runtime.clear()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return Natc(run)
