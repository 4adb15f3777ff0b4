"""The documentation's site: its links, its search, its signatures; it works without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
from support.loaded_file import load_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    return load_file(ROOT / "docs" / "site.py")


@pytest.mark.parametrize(
    ("source", "link", "uri", "anchor"),
    [
        ("docs/use.md", "functions.md#fused", "functions.md", "#fused"),
        ("docs/commands/tune.md", "../../schedules/README.md", "schedules.md", ""),
        ("README.md", "docs/commands/tune.md", "commands/tune.md", ""),
        ("benchmarks/README.md", "../README.md#start", "index.md", "#start"),
        ("docs/models.md", "../examples/nat_photo.py", "files/examples/nat_photo.py.txt", ""),
        ("README.md", "benchmarks/results/a.json", "files/benchmarks/results/a.json", ""),
    ],
)
def test_links(site: ModuleType, source: str, link: str, uri: str, anchor: str) -> None:
    path, target_anchor = site._target(source, link)
    assert (site._uri(path), target_anchor) == (uri, anchor)


@pytest.mark.parametrize("link", ["https://arxiv.org/abs/2204.07143", "#fused", "mailto:a@b.c"])
def test_links_to_the_web_and_to_anchors_stay(site: ModuleType, link: str) -> None:
    assert site._target("docs/use.md", link)[0] is None


def test_links_in_code_are_not_links(site: ModuleType) -> None:
    text = "[a](a.md)\n\n```python\nlaunch[grid](b)\n```\n\n[c](c.md) `d[e](f)`\n"
    assert site._linked("docs/use.md", text) == {"docs/a.md", "docs/c.md"}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/a.js">',
        "<script async src=//cdn.example/a.js>",
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<link rel="preconnect" href="https://fonts.example" crossorigin>',
        '<img alt="badge" src="https://badges.example/a.svg">',
        "<iframe src='http://example.org'>",
        "a{background:url(https://example.org/a.png)}",
        'a{src:url("//example.org/a.woff")}',
    ],
)
def test_a_page_that_loads_over_the_network_is_refused(site: ModuleType, text: str) -> None:
    with pytest.raises(Exception, match="must work offline"):
        site._refuse_fetching("page", text)


@pytest.mark.parametrize(
    "text",
    [
        '<a href="https://example.org">',
        '<script src="assets/a.js">',
        '<link rel="canonical" href="https://example.org/page">',
        '<img src="../images/a.png">',
        "a{background:url(data:image/svg+xml;charset=utf-8,<svg>)}",
    ],
)
def test_a_page_that_loads_local_files_is_allowed(site: ModuleType, text: str) -> None:
    site._refuse_fetching("page", text)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once; a warning of mkdocs is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run(
        [*command, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_can_be_searched_from_a_folder(built: Path) -> None:
    # Browsers read no JSON from a folder, and start no worker.
    index = (built / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ")
    for page in ("index.html", "use.html", "commands/tune.html"):
        text = (built / page).read_text(encoding="utf-8")
        source = re.search(r'<script src="([^"]*iframe-worker\.js)"', text)
        assert source, page
        assert ((built / page).parent / source[1]).is_file()


def test_every_page_is_in_the_navigation(built: Path) -> None:
    start = (built / "index.html").read_text(encoding="utf-8")
    pages = {str(path.relative_to(built)) for path in built.rglob("*.html")} - {"404.html"}
    assert {page for page in pages if f'href="{page}"' not in start} == set()


def test_long_signatures_are_broken_into_lines(built: Path) -> None:
    text = (built / "reference.html").read_text(encoding="utf-8")
    blocks = re.findall(r'<div class="[^"]*doc-signature[^"]*">(.*?)</div>', text, re.DOTALL)
    assert len(blocks) > 20
    lines = [
        line for block in blocks for line in unescape(re.sub("<[^>]+>", "", block)).split("\n")
    ]
    assert max(map(len, lines)) <= 76


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_begins_with_a_whole_sentence(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    title, first = re.findall(r"^\S.*?(?=\n\n|\n\Z)", text, re.MULTILINE | re.DOTALL)[:2]
    assert title.startswith("# ")
    assert re.match(r"[A-Z`]|natc\b", first) and not first.startswith("```"), first
    assert first.rstrip().endswith((".", ":")), first
