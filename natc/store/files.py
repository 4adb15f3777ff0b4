"""Writing files so that no crash, full disk or second process damages the old content."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import shlex
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from natc import env
from natc.errors import NatcError

_log = logging.getLogger("natc")

_LOCK = ".natc.lock"
# A process that waits longer than this many seconds for a lock says so.
_PATIENCE = 1.0
# How many seconds `locked` waits; see `wait_at_most`.
longest_wait = math.inf
_LONGEST_COMMAND = 200


class Locked(NatcError):
    """Another process holds a lock; the message names the lock."""


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Create a directory and its missing parents, and return it.

    Only the user may write into the new directories, whatever the umask, because libraries are
    loaded from such directories. Raises NatcError naming the directory when it cannot be created.
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
        raise NatcError(
            f"directory {directory} cannot be created: {reason(error)}. Name another on the "
            f"command line, or with {env.NATC_CACHE_DIR.name} (libraries) or "
            f"{env.NATC_WORKSPACE.name} (schedules and logs)."
        ) from error
    return directory


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file in one step: a reader sees the old content or the new, never a part.

    data: bytes, or text that is written as UTF-8. Missing parent directories are created. Only
    the user may write to the file later, whatever the umask.
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


def wait_at_most(seconds: float | None) -> None:
    """Make `locked` give up after some seconds, in this process; None: wait without end."""
    global longest_wait
    longest_wait = math.inf if seconds is None else seconds


@contextlib.contextmanager
def locked(directory: Path, name: str = _LOCK, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a directory; writers wait for it, readers do not.

    After a second of waiting, this logs a warning that names the holder, and goes on waiting, as
    long as `wait_at_most` allows. Raises Locked then, or after the second if `wait` is False, and
    NatcError naming the lock file when it cannot be created.
    """
    # Imported late, because every command would take longer to start.
    import filelock

    path = make_directory(directory) / name
    longest = longest_wait if wait else _PATIENCE
    # The system releases it when the process ends, however it ends.
    lock = filelock.FileLock(path, mode=0o644)
    try:
        try:
            lock.acquire(timeout=min(_PATIENCE, longest))
        except filelock.Timeout as error:
            if longest > _PATIENCE:
                _log.warning("natc waits: %s", _held(path))
                with contextlib.suppress(filelock.Timeout):
                    lock.acquire(timeout=-1 if longest == math.inf else longest - _PATIENCE)
            if not lock.is_locked:
                raise Locked(_held(path)) from error
    except OSError as error:
        raise NatcError(f"file {path} cannot be locked: {reason(error)}.") from error
    try:
        yield
    finally:
        lock.release()


def _lock(descriptor: int, path: Path) -> None:
    """Lock an open file; log a warning that names the holder after a second of waiting."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.002)
    _log.warning("natc waits: %s", _held(path))
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _held(path: Path) -> str:
    """Return which process holds a lock, and how to go on, as far as the system says."""
    pid = _holder(path)
    if pid is None:
        return f"another process holds the lock {path}"
    if pid == os.getpid():
        return f"another thread of this process holds the lock {path}"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        # After the name, which may hold anything, in parentheses.
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        words, state = [], b""
    command = shlex.join(word.decode(errors="replace") for word in words)[:_LONGEST_COMMAND]
    advice = f"if it hangs, end it: kill {pid}"
    if state in (b"T", b"t"):
        advice = f"it is stopped: continue it with kill -CONT {pid}, or end it with kill -9 {pid}"
    return f"process {pid} ({command or 'unknown'}) holds the lock {path}; {advice}"


def _holder(path: Path) -> int | None:
    """Return the process that holds a lock, or None if that is unknown."""
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        for line in Path("/proc/locks").read_text().splitlines():
            # number: FLOCK ADVISORY WRITE pid device:inode start end; who waits has an arrow.
            words = line.split()
            if words[1] == "FLOCK" and words[5] == f"{device}:{status.st_ino}":
                # 0 or -1 for a process of another container.
                return int(words[4]) if int(words[4]) > 0 else None
    return None


def _for_the_user(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append one line of text to a file, on disk when this returns; creates the file.

    line: text without a newline; this adds one. A last line that a crash cut short stays, and
    the new line begins after a newline.
    Raises NatcError naming the file when it cannot be written.
    """
    if "\n" in line:
        raise NatcError(f"a line for {path} contains a newline: {line[:80]!r}.")
    path = Path(path)
    make_directory(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            # Held until the file is closed: without it, another writer's unfinished line would
            # look cut short.
            _lock(descriptor, path)
            size = os.fstat(descriptor).st_size
            broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = (("\n" if broken else "") + line + "\n").encode()
            # One write: a kill leaves the whole line, or its beginning, which the next call ends
            # with a newline.
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
