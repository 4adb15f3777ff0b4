"""The blocks of pages that build or tune are run, as a reader would run them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from support import doc_blocks
from support.doc_blocks import PAGES, Session, name

from natc import runtime

RUN = [page for page in PAGES if doc_blocks.run(page) and doc_blocks.compiles(page)]


def test_pages_with_commands_are_found() -> None:
    assert {"docs/commands/build.md", "docs/commands/measure.md", "docs/ship-kernels.md"} <= set(
        map(name, RUN)
    )


@pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")
@pytest.mark.parametrize("page", RUN, ids=name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.machine() != "x86_64" and "x86-64" in page.read_text(encoding="utf-8"):
        pytest.skip("the page builds for x86-64, which takes another linker here")
    try:
        Session(tmp_path, monkeypatch).run_page(page)
    finally:
        runtime.clear()
