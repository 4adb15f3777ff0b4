"""Kernels in a process that was forked from a process with threads.

A fork copies only the thread that called it. GNU's OpenMP, which torch brings, does not notice
that its other threads are gone and waits for them for ever, as torch's own operators do after a
fork. So kernels run on one thread there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

# The thread that survived the fork; None if this process is not a fork.
_survivor: int | None = None


def _after_fork() -> None:
    """Remember this thread, which alone is in the new process."""
    global _survivor
    _survivor = threading.get_ident()


os.register_at_fork(after_in_child=_after_fork)


def misses_its_threads() -> bool:
    """Return whether OpenMP would wait, in this thread, for threads that a fork did not copy."""
    return _survivor is not None and threading.get_ident() == _survivor


def call_alone(function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Call a function with torch and OpenMP limited to this thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        function(*arguments)
    finally:
        torch.set_num_threads(threads)
