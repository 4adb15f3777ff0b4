"""Who could change a library: directories and files that others may write are not loaded from.

A library is machine code, so whoever can write where one is looked for can run code as the user.
A hash in a manifest beside it does not help against that. Looked at once for a directory, when it
is searched, and once for a library, when it is opened; never in a call.
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

    It and every directory above it must belong to the user or to root, and nobody else may write
    there. Above it, a directory where nobody can replace what is another's (sticky, as /tmp is)
    will do; so does a group of the owner alone, which many systems give every user.
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
    # Systems without such owners and modes have other means, which are not looked at.
    return os.name != "posix" or env.NATC_ALLOW_WRITABLE_LIBRARIES.flag()


def _chain(directory: Path) -> Iterator[tuple[Path, bool]]:
    """Yield a directory and those above it, with whether it is one above."""
    for start in dict.fromkeys((directory.resolve(), directory.absolute())):
        yield start, False
        for parent in start.parents:
            yield parent, True


def _reason(path: Path, found: os.stat_result, *, sticky_is_fine: bool) -> str | None:
    mode = stat.S_IMODE(found.st_mode)
    user = os.geteuid()
    if found.st_uid not in (_ROOT, user):
        return (
            f"{path} belongs to user {found.st_uid}, who is neither root nor the user of this "
            f"process, {user}; {_allow('who')}"
        )
    if sticky_is_fine and mode & stat.S_ISVTX:
        return None
    if mode & stat.S_IWOTH:
        who = "everyone"
    elif mode & stat.S_IWGRP and not _private(found.st_gid, found.st_uid):
        who = f"group {found.st_gid}"
    else:
        return None
    # A directory that all users share, such as /tmp, is to stay as it is.
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
        found, user = grp.getgrgid(group), pwd.getpwuid(owner)
    except KeyError:
        return False
    return found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}
