"""What the README and the pages in docs/ show: code that runs, links that lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from c_library import LibraryDirectory

from natc.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))

# A block is run unless a comment directly above it says why not.
BLOCK = re.compile(r"(<!-- not run: .+ -->\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")


def blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page that are to run."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [code for marked, code in found if not marked]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


RUN = [page for page in PAGES if blocks(page)]


def test_the_pages_that_show_code_are_found() -> None:
    assert {"README.md", "docs/use.md", "docs/models.md"} <= set(map(name, RUN))


@pytest.mark.parametrize("page", RUN, ids=name)
def test_python_blocks_run(page: Path, libraries: LibraryDirectory) -> None:
    # One after another in one namespace, as a reader would type them.
    namespace: dict[str, object] = {}
    for code in blocks(page):
        exec(compile(code, name(page), "exec"), namespace)


@pytest.mark.parametrize("script", EXAMPLES, ids=name)
def test_examples_run(script: Path, libraries: LibraryDirectory) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        # A script's own folder is on its path, the checkout is not.
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_lead_to_files(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "http://", "#")):
            assert (page.parent / link.split("#")[0]).exists(), f"{name(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_verb_that_a_page_names_exists(page: Path) -> None:
    verbs = {command.name for command in app.registered_commands}
    named = {
        verb
        for code in CODE.findall(page.read_text(encoding="utf-8"))
        for verb in re.findall(r"\bnatc ([a-z]+)\b", code)
    }
    assert named <= verbs, f"{name(page)} names natc {', '.join(sorted(named - verbs))}"
