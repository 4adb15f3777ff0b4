"""Pages that show commands: each command is run, and the Python beside it, as a reader would."""

from __future__ import annotations

from pathlib import Path

import doc_blocks
import pytest
from doc_blocks import PAGES, Session, name

RUN = [
    page
    for page in PAGES
    if any(block.runs and block.language == "bash" for block in doc_blocks.read(page))
]


def test_the_pages_that_show_commands_are_found() -> None:
    assert {"docs/commands/tune.md", "docs/commands/build.md", "docs/ship-kernels.md"} <= set(
        map(name, RUN)
    )


@pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")
@pytest.mark.parametrize("page", RUN, ids=name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natc import runtime

    session = Session(tmp_path, monkeypatch)
    try:
        for block in doc_blocks.read(page):
            if block.runs:
                session.run(block)
    finally:
        runtime.clear()
