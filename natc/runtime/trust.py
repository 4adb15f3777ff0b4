"""Checks that only the user and root can change a library.

A library is machine code, so whoever can write into a library directory can run code as the user.
A hash in a manifest beside the library does not prevent that. natc checks a directory when it is
searched and a library when it is opened, never in a call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from natc import env

_ROOT = 0
# The system follows no more links than this.
_MOST_LINKS = 40


def distrust(path: Path) -> str | None:
    """Return why a library, or the libraries in a directory, are not to be loaded, or None.

    The reason is a clause. The path, and each directory and link on the way to it, must belong to
    the user or to root, and nobody else may write there. Sticky directories on the way, such as
    /tmp, are accepted, because nobody can replace another user's files there; so are groups with
    the owner as the only member, which many systems have.
    """
    if _allowed():
        return None
    path = path.absolute()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for step, status, is_end in _way(path):
            reason = _reason(step, status, sticky_is_fine=not is_end)
            if reason:
                return reason
    return None


def noexec(directory: Path) -> str | None:
    """Return why no library in a directory can run, as a clause, or None.

    The directory may not exist yet.
    """
    while not directory.exists() and directory.parent != directory:
        directory = directory.parent
    if not hasattr(os, "ST_NOEXEC") or not os.statvfs(directory).f_flag & os.ST_NOEXEC:
        return None
    return (
        f"{directory} is on a file system that is mounted noexec: keep libraries on another one "
        f"({env.NATC_CACHE_DIR.name} for natc's own, {env.NATC_LIB_PATH.name} for others)"
    )


def _allowed() -> bool:
    # Other systems have no such owners and modes.
    return os.name != "posix" or env.NATC_ALLOW_WRITABLE_LIBRARIES.flag()


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result, bool]]:
    """Yield each directory and link that leads to a path, and its end, which is no link.

    Yields (directory, link or end; its status; whether it is the end). The system follows a link
    inside of a link's target, too, so the real path alone does not show all of them.
    """
    step, status = Path(path.anchor), os.lstat(path.anchor)
    names, links = list(reversed(path.parts[1:])), 0
    yield step, status, not names
    while names:
        directory, step = step, step / names.pop()
        # The directory is no link, so its parent is the directory above it.
        step = directory.parent if step.name == ".." else step
        status = os.lstat(step)
        is_link = stat.S_ISLNK(status.st_mode)
        yield step, status, not names and not is_link
        if is_link:
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = Path(os.readlink(step))
            names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            step = Path(target.anchor) if target.is_absolute() else directory


def _reason(path: Path, status: os.stat_result, *, sticky_is_fine: bool) -> str | None:
    mode = stat.S_IMODE(status.st_mode)
    user = os.geteuid()
    if status.st_uid not in (_ROOT, user):
        return (
            f"{path} belongs to user {status.st_uid}, who is neither root nor the user of this "
            f"process, {user}; {_allow('who')}"
        )
    # The mode of a link means nothing: its owner alone can replace it.
    if stat.S_ISLNK(status.st_mode) or (sticky_is_fine and mode & stat.S_ISVTX):
        return None
    if mode & stat.S_IWOTH:
        who = "everyone"
    elif mode & stat.S_IWGRP and not _private(status.st_gid, status.st_uid):
        who = f"group {status.st_gid}"
    else:
        return None
    # The mode of a directory that all users share, such as /tmp, must not change.
    shared = mode & stat.S_ISVTX
    remedy = "keep libraries in a directory of their own" if shared else f"chmod go-w '{path}'"
    return (
        f"{path} can be written by {who} (mode {mode:04o}): {remedy}, or {_allow('everyone who')}"
    )


def _allow(who: str) -> str:
    return (
        f"set {env.NATC_ALLOW_WRITABLE_LIBRARIES.name}=1 if {who} can write there may run code "
        "in your name"
    )


def _private(group: int, owner: int) -> bool:
    """Return whether a group has no member but the owner."""
    import grp
    import pwd

    try:
        members, user = grp.getgrgid(group), pwd.getpwuid(owner)
    except KeyError:
        return False
    return members.gr_name == user.pw_name and set(members.gr_mem) <= {user.pw_name}
