"""Result files: one JSON document each, replaced whole, so that a kill leaves one that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from natc.store.files import write_atomically


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document to a file, indented; raises NatcError where that fails."""
    text = msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2).decode()
    write_atomically(path, text + "\n")
