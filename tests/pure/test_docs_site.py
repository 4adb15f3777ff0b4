"""What the documentation's site does to links, and that nothing of it needs a network."""

from __future__ import annotations

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
def test_links_lead_to_their_place_in_the_site(
    site: ModuleType, source: str, link: str, uri: str, anchor: str
) -> None:
    path, found = site._target(source, link)
    assert (site._uri(path), found) == (uri, anchor)


@pytest.mark.parametrize("link", ["https://arxiv.org/abs/2204.07143", "#fused", "mailto:a@b.c"])
def test_other_links_stay(site: ModuleType, link: str) -> None:
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
def test_what_would_be_fetched_is_refused(site: ModuleType, text: str) -> None:
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
def test_what_is_not_fetched_is_allowed(site: ModuleType, text: str) -> None:
    site._refuse_fetching("page", text)
