"""Damaged copies of a file, drawn with fixed seeds; for tests of whoever reads the file.

The checks raise and do not use `assert`, so that they hold under `python -O` too.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

# A part of the mutations is enough where the same test runs a second time.
_FEWER = int(os.environ.get("NATC_TESTS_FEWER_MUTATIONS", "1"))


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` damaged copies of some bytes, none of them equal to `data`."""
    draw = random.Random(seed)
    while count:
        place, elsewhere = draw.randrange(len(data)), draw.randrange(len(data))
        end = place + draw.randint(1, 40)
        byte, part = data[place], data[place:end]
        # First and last position of the bytes to replace, and the new bytes.
        start, stop, new = draw.choice(
            (
                (place, place + 1, bytes([byte ^ 1 << draw.randrange(8)])),
                (place, place + 1, bytes([draw.randrange(256)])),
                (place, place + 1, str(draw.randrange(10)).encode()),
                (place, len(data), b""),
                (place, end, b""),
                (place, place, part),
                (elsewhere, elsewhere + len(part), part),
                (place, place, draw.randbytes(end - place)),
            )
        )
        damaged = data[:start] + new + data[stop:]
        if damaged != data:
            count -= 1
            yield damaged


def fuzz(path: Path, check: Callable[[], str], *, seed: int, count: int) -> dict[str, int]:
    """Check each of `count` damaged copies in a file's place; return how many ended in which way.

    check: reads the file and returns how it ended, in a word; it raises for a wrong end.
    Raises AssertionError with the damaged content.
    """
    data, ends = path.read_bytes(), Counter[str]()
    for damaged in mutations(data, seed, count // _FEWER):
        path.write_bytes(damaged)
        try:
            ends[check()] += 1
        except Exception as error:
            raise AssertionError(f"{error!r} for {path.name}, damaged: {damaged!r}") from error
    path.write_bytes(data)
    return dict(sorted(ends.items()))


def demand(condition: bool, message: str) -> None:
    """Raise AssertionError unless a condition holds."""
    if not condition:
        raise AssertionError(message)
