"""Hooks of `mkdocs build`: adds pages from outside docs/, and translates links to them.

Pages link to files of the repository, so that the links work where the repository is shown. In the
site, such a link leads to the page or file of the site. A site that would fetch anything over the
network is an error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# The path of a page in the repository, and in the site.
OUTSIDE = {
    "README.md": "index.md",
    "DESIGN.md": "design.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/README.md": "tests.md",
    "schedules/README.md": "schedules.md",
    "tuning_logs/README.md": "tuning-logs.md",
}
DOCS = "docs/"
# Browsers show these; other files get a name that they show.
SHOWN = (".png", ".svg", ".html", ".json", ".txt")

# A link; or code, so that nothing in it is taken for a link.
LINK = re.compile(
    r"(?P<before>\[(?P<text>[^\]]*)\]\()(?P<link>[^)\s]+)\)|^ *```.*?^ *```|`[^`\n]+`",
    re.MULTILINE | re.DOTALL,
)
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link(?![^>]*rel=[\"']?canonical))\b[^>]*?"
    r"(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)"
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages from outside, and the files that any page links to."""
    root = _root(config)
    for source, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(root / source)))
    linked = {
        path
        for file in files.documentation_pages()
        for path in _linked(_source(file.src_uri), Path(file.abs_src_path).read_text("utf-8"))
    }
    for path in sorted(linked):
        uri = _uri(path)
        # A folder of the repository has no place in the site: such a link becomes text.
        if files.get_file_from_path(uri) is None and not (root / path).is_dir():
            if not (root / path).is_file():
                raise PluginError(f"a page links to {path}, which is no file of the repository.")
            files.append(File.generated(config, uri, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translate links into paths of the site."""
    here = page.file.src_uri

    def replace(match: re.Match[str]) -> str:
        path, anchor = _target(_source(here), match["link"] or "")
        if path is None:
            return match[0]
        if (_root(config) / path).is_dir():
            return match["text"]
        place = posixpath.relpath(_uri(path), posixpath.dirname(here))
        return f"{match['before']}{place}{anchor})"

    return LINK.sub(replace, markdown)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Raise PluginError for a page that loads something over the network."""
    _refuse_fetching(page.file.src_uri, output)
    return output


def on_post_build(*, config: MkDocsConfig) -> None:
    """Raise PluginError for a style sheet that loads something over the network."""
    for path in sorted(Path(config.site_dir).rglob("*.css")):
        _refuse_fetching(str(path), path.read_text("utf-8"))


def _refuse_fetching(name: str, text: str) -> None:
    fetched = FETCHED.search(text)
    if fetched:
        raise PluginError(
            f"{name} fetches {fetched[1] or fetched[2]}; the site must work offline."
        )


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def _source(uri: str) -> str:
    """Return the path in the repository of a page, given its path in the site."""
    return next((path for path, name in OUTSIDE.items() if name == uri), DOCS + uri)


def _uri(path: str) -> str:
    """Return the path in the site of a file, given its path in the repository."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return f"files/{path}" + ("" if path.endswith(SHOWN) else ".txt")


def _target(source: str, link: str) -> tuple[str | None, str]:
    """Return the path in the repository that a link leads to, None if outside, and its anchor."""
    path, mark, anchor = link.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return None, ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), mark + anchor


def _linked(source: str, markdown: str) -> set[str]:
    """Return the paths in the repository that a page links to."""
    links = [match["link"] for match in LINK.finditer(markdown) if match["link"]]
    return {path for link in links if (path := _target(source, link)[0]) is not None}
