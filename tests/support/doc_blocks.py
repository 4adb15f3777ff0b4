"""The blocks of code in the README and the pages, and the places where they are run."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])

# Tests run a block unless the comment above it gives a reason not to. .ci/run runs the blocks that
# are marked as commands.
BLOCK = re.compile(
    r"^(?:<!-- (not run|command): ([^\n]+) -->\n)?^( *)```([^\n]*)\n(.*?)^\3```$",
    re.MULTILINE | re.DOTALL,
)
# Words that separate commands in a line, and redirections, which a file's name follows.
SEPARATORS = frozenset(("&&", "||", "|", ";", "&", "(", ")", "\n"))
REDIRECTIONS = frozenset((">", ">>", "<", "<<", "&>"))


@dataclass(frozen=True)
class Block:
    """One block of code. `reason` says why no test runs it; None if a test does."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None
    command: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Return whether a test runs the block."""
        return self.language in ("python", "bash") and self.reason is None and self.command is None


def read(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in BLOCK.finditer(text):
        marker, words, indent, language, code = match.groups()
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        line = text.count("\n", 0, match.start(5)) + 1
        blocks.append(
            Block(
                page,
                line,
                language,
                code,
                words if marker == "not run" else None,
                words if marker == "command" else None,
            )
        )
    return blocks


def run(page: Path) -> bool:
    """Return whether tests run any block of a page."""
    return any(block.runs for block in read(page))


def compiles(page: Path) -> bool:
    """Return whether a block that tests run on a page needs the compiler."""
    return any(
        words[0] == "natc" and words[1] in ("tune", "build", "package")
        for block in read(page)
        if block.runs and block.language == "bash"
        for words in commands(block.code)
    )


def name(path: Path) -> str:
    """Return a page's name for messages."""
    return str(path.relative_to(ROOT))


def commands(code: str) -> list[list[str]]:
    """Return the commands of a shell script as lists of words, without assignments before them."""
    scripts: list[list[str]] = [[]]
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in lexer:
            if word in REDIRECTIONS:
                next(lexer, None)
            elif word in SEPARATORS:
                scripts.append([])
            else:
                scripts[-1].append(word)
        scripts.append([])
    stripped = []
    for words in scripts:
        while words and re.match(r"\w+=", words[0]):
            words = words[1:]
        if words:
            stripped.append(words)
    return stripped


class Session:
    """Runs the blocks of a page one after another, as a reader would type them.

    In one scratch directory, which holds natc's cache and workspace too. Python blocks share a
    namespace; later blocks see the variables that a bash block exports. `torch.compile` uses the
    backend `aot_eager`, since the default backend would compile C++ for half a minute.
    """

    def __init__(self, directory: Path, monkeypatch: Any) -> None:
        self.monkeypatch = monkeypatch
        self.namespace: dict[str, Any] = {}
        self.state = directory / "environment"
        scratch = directory / "work"
        scratch.mkdir()
        # Commands on the pages read these folders, as at the root of a checkout.
        for folder in ("benchmarks", "examples", "schedules"):
            shutil.copytree(ROOT / folder, scratch / folder)
        programs = directory / "bin"
        programs.mkdir()
        # The tests may run from a checkout that is not installed, and the machine's path may lead
        # to another "python".
        for name, module in (("natc", "-m natc "), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n')
            program.chmod(0o755)
        for variable in [key for key in os.environ if key.startswith("NATC_")]:
            monkeypatch.delenv(variable)
        monkeypatch.setenv("NATC_CACHE_DIR", str(directory / "cache"))
        monkeypatch.setenv("NATC_WORKSPACE", str(directory / "workspace"))
        # A build that a page does not ask for would take seconds.
        monkeypatch.setenv("NATC_JIT", "off")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.chdir(scratch)

    def run_page(self, page: Path) -> None:
        """Run the blocks of a page that a reader can run, in order; raises as `run` does."""
        for block in read(page):
            if block.runs:
                self.run(block)

    def run(self, block: Block) -> None:
        """Run a block; a failed command raises AssertionError, Python code its own errors."""
        if block.language == "python":
            self._python(block)
        else:
            self._bash(block)

    def _python(self, block: Block) -> None:
        import torch

        from natc import runtime

        if not isinstance(torch.compile, functools.partial):
            compiled = functools.partial(torch.compile, backend="aot_eager")
            self.monkeypatch.setattr(torch, "compile", compiled)
        runtime.clear()
        # So that tracebacks show the line numbers of the page.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, str(block.page), "exec"), self.namespace)

    def _bash(self, block: Block) -> None:
        script = f"{block.code}\nenv -0 > {shlex.quote(str(self.state))}\n"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{block.code}\n{done.stdout}\n{done.stderr}"
        after = dict(
            part.split("=", 1) for part in self.state.read_text().split("\0") if "=" in part
        )
        for key, value in after.items():
            if key not in ("_", "SHLVL", "PWD", "OLDPWD") and os.environ.get(key) != value:
                self.monkeypatch.setenv(key, value)
