"""The JSON objects in natc's files: each carries a checksum, so that damage is noticed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_FIELD = "checksum"
_DIGITS = 16


class OtherVersion(Exception):
    """An object with another schema version than the expected one; it may differ in all else.

    version: its schema version; content: the object.
    """

    def __init__(self, version: int, content: dict[str, Any]) -> None:
        super().__init__(f"schema version {version}")
        self.version, self.content = version, content


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum as the last field."""
    return {**content, _FIELD: _checksum(content)}


def parse(data: bytes, version: int) -> dict[str, Any]:
    """Return the JSON object in a file or line, after checking its version and its checksum.

    Raises OtherVersion if its `schema_version` is not `version`, and ValueError if `data` is no
    such object or a field was changed since natc wrote it.
    """
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it must be a JSON object")
    actual = content.get("schema_version")
    if type(actual) is not int or actual < 1:
        raise ValueError(f"schema_version {actual} must be 1 or more")
    if actual != version:
        raise OtherVersion(actual, content)
    stated, expected = content.get(_FIELD), _checksum(content)
    if stated != expected:
        raise ValueError(
            f"its checksum is {stated}, and the checksum of its fields is {expected}: it was "
            "damaged or edited"
        )
    return content


def _checksum(content: dict[str, Any]) -> str:
    """Return the checksum of all other fields; their order and blanks in the file do not count."""
    fields = {name: value for name, value in content.items() if name != _FIELD}
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
