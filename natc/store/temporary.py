"""Temporary directories; killed processes leave theirs to the next process, which removes them."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from natc.errors import NatcError
from natc.store.files import locked

# The owner of a directory holds this lock. No other directory has a file of this name, so nothing
# that a user keeps is removed.
_LOCK = ".natc-temporary.lock"
# Seconds in which the owner of a new directory has locked it.
_NEW = 60.0
_LEAST_FREE = 16 << 20


@contextlib.contextmanager
def temporary_directory(purpose: str) -> Iterator[Path]:
    """Create a temporary directory, `natc-PURPOSE-...`, and remove it at the end.

    The first call of a process also removes such directories of killed processes. Raises NatcError
    if the disk is nearly full: LLVM would end the process when it cannot write a file.
    """
    _remove_abandoned()
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < _LEAST_FREE:
        raise NatcError(
            f"the directory for temporary files, {tempfile.gettempdir()}, has {free >> 20} MiB "
            f"free, and natc needs {_LEAST_FREE >> 20}: free some, or name another with TMPDIR."
        )
    prefix = f"natc-{purpose}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        directory = Path(name)
        with locked(directory, _LOCK):
            yield directory


@functools.cache
def _remove_abandoned() -> None:
    for directory in Path(tempfile.gettempdir()).glob("natc-*-*"):
        # Among them: it has no lock, the lock is held, or another process removes it.
        with contextlib.suppress(OSError):
            _remove_if_abandoned(directory)


def _remove_if_abandoned(directory: Path) -> None:
    """Remove a directory of this user if `temporary_directory` made it and its owner has ended."""
    status = directory.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not is_ours or time.time() - status.st_mtime < _NEW:
        return
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        # The system released the lock when the owner ended, however it ended.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    finally:
        os.close(lock)
