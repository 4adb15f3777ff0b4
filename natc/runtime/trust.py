"""Checks that only the user and root can change a library.

A library is machine code, so whoever can write into a library directory can run code as the user.
A hash in a manifest beside the library does not prevent that. natc checks a directory when it is
searched and a library when it is opened, never in a call.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from natc import env

_ROOT = 0


def distrust(directory: Path) -> str | None:
    """Return why libraries in a directory are not to be loaded, as a clause, or None.

    The directory and its parents must belong to the user or to root, and nobody else may write
    there. Sticky parents, such as /tmp, are accepted, because nobody can replace another user's
    files there; so are groups with the owner as the only member, which many systems have.
    """
    if _allowed():
        return None
    for path, above in _chain(directory):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            reason = _reason(path, os.stat(path), sticky_is_fine=above)
            if reason:
                return reason
    return None


def distrust_file(path: Path) -> str | None:
    """Return why a file in a trusted directory is not to be loaded, as a clause, or None."""
    if _allowed():
        return None
    return _reason(path, os.stat(path), sticky_is_fine=False)


def _allowed() -> bool:
    # Other systems have no such owners and modes.
    return os.name != "posix" or env.NATC_ALLOW_WRITABLE_LIBRARIES.flag()


def _chain(directory: Path) -> Iterator[tuple[Path, bool]]:
    """Yield a directory with False, and each of its parents with True."""
    for start in dict.fromkeys((directory.resolve(), directory.absolute())):
        yield start, False
        for parent in start.parents:
            yield parent, True


def _reason(path: Path, status: os.stat_result, *, sticky_is_fine: bool) -> str | None:
    mode = stat.S_IMODE(status.st_mode)
    user = os.geteuid()
    if status.st_uid not in (_ROOT, user):
        return (
            f"{path} belongs to user {status.st_uid}, who is neither root nor the user of this "
            f"process, {user}; {_allow('who')}"
        )
    if sticky_is_fine and mode & stat.S_ISVTX:
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
