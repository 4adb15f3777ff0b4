"""Kernels in a process that was forked from one that had threads.

OpenMP keeps its threads for the thread that started them. After a fork none of them is there, and
GNU's OpenMP, which torch brings, would wait for them for ever: torch's own operators do. A kernel
runs on the one thread that there is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

# The thread that forked this process and goes on in it; None where nothing forked.
_survivor: int | None = None


def _after_fork() -> None:
    global _survivor
    _survivor = threading.get_ident()


os.register_at_fork(after_in_child=_after_fork)


def misses_its_threads() -> bool:
    """Return whether OpenMP would wait, in this thread, for threads that a fork left behind."""
    return _survivor is not None and threading.get_ident() == _survivor


def call_alone(function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Call a function with no other threads than this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        function(*arguments)
    finally:
        torch.set_num_threads(threads)
