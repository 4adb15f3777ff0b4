"""Writing files so that a crash, a full disk or a second process cannot damage what was there."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from natc.errors import NatcError

_log = logging.getLogger("natc")

_LOCK = ".natc.lock"
# Seconds that one waits for a lock without a word: most are held for less.
_PATIENCE = 1.0


class Locked(NatcError):
    """Another process holds a lock; says which."""


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Create a directory and its parents where they are missing, and return it.

    Only the user may write into what is created, whatever the umask: libraries are loaded from
    such directories. Raises NatcError naming the directory when it cannot be created.
    """
    directory = Path(path)
    try:
        missing = [directory, *directory.parents]
        while missing and missing[-1].exists():
            missing.pop()
        for path in reversed(missing):
            path.mkdir(mode=0o755, exist_ok=True)
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise NatcError(f"directory {directory} cannot be created: {reason(error)}.") from error
    return directory


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace a file by new content so that a reader sees the old or the new, never a part.

    data: bytes, or text that is written as UTF-8. Missing parent directories are created. Only
    the user may write the file later, whatever the umask.
    Raises NatcError naming the directory when it is not writable; the old file then stays.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    make_directory(path.parent)
    # In the same directory, because os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb", opener=_for_the_user) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise NatcError(
            f"file {path.name} cannot be written in directory {path.parent}: {reason(error)}."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: Path, name: str = _LOCK, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock of a directory, for which writers wait and readers do not.

    Who waits for more than a second says so once, on natc's logger. wait: False gives up then.
    Raises Locked where it gave up, and NatcError naming the lock when it cannot be had.
    """
    # Late, or every command would take longer to start.
    import filelock

    path = make_directory(directory) / name
    # The system lets go of it when a process ends, however it ends.
    lock = filelock.FileLock(path, mode=0o644)
    try:
        try:
            lock.acquire(timeout=_PATIENCE)
        except filelock.Timeout as error:
            held = f"another process holds the lock {path}"
            if not wait:
                raise Locked(held) from error
            _log.warning("natc waits: %s", held)
            lock.acquire()
    except OSError as error:
        raise NatcError(f"file {path} cannot be locked: {reason(error)}.") from error
    try:
        yield
    finally:
        lock.release()


def _for_the_user(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append one line of text to a file, on disk when this returns; creates the file.

    line: text with no newline; one is added. A last line that a crash cut short stays as it
    is and the new line starts on its own.
    Raises NatcError naming the file when it cannot be written.
    """
    if "\n" in line:
        raise NatcError(f"a line for {path} contains a newline: {line[:80]!r}.")
    path = Path(path)
    make_directory(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            # Held until the file is closed: between another writer's bytes and its newline, the
            # last line would look cut short.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = (("\n" if broken else "") + line + "\n").encode()
            # One write: a kill leaves the whole line or its beginning, which the next one mends.
            if os.write(descriptor, data) != len(data):
                raise OSError("the disk took only a part of the line")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise NatcError(f"file {path} cannot be appended to: {reason(error)}.") from error


def writable(directory: str | os.PathLike[str]) -> bool:
    """Return whether files can be created in a directory, or it can itself be created."""
    path = Path(directory)
    while not path.exists() and path.parent != path:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def reason(error: OSError) -> str:
    """Return the system's words for an error, without the number and the path."""
    return (error.strerror or str(error)).lower()
