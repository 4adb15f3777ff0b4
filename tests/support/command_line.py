"""How a command ended, and the type of the fixture that runs one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


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
