"""Defers Ctrl-C while compiled code that calls back into Python cannot be unwound."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; raised inside MetaSchedule, it ends the process."""
    before = signal.getsignal(signal.SIGINT)
    # Elsewhere Python delivers no signal, and a handler that is not Python's cannot be called.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        before(*held[0])
