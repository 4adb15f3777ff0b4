"""Every environment variable that natc reads, in one place, so that `natc doctor` can show all."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class EnvVar:
    """An environment variable that natc reads."""

    name: str

    def get(self) -> str | None:
        """Return the value as text, or None when it is unset or empty."""
        return os.environ.get(self.name) or None

    def set(self, value: str) -> None:
        """Set the value for this process and those that it starts."""
        os.environ[self.name] = value

    def word(self) -> str:
        """Return the value in lower case and without blanks around it, "" when it is unset."""
        return (self.get() or "").strip().lower()

    def flag(self) -> bool:
        """Return whether the value is one of 1, true, yes, on (any case)."""
        return self.word() in ("1", "true", "yes", "on")

    def paths(self) -> list[str]:
        """Return the value split at `os.pathsep`, without empty parts."""
        return [part for part in (self.get() or "").split(os.pathsep) if part]


# Directory for built libraries and other files that can be made again.
NATC_CACHE_DIR = EnvVar("NATC_CACHE_DIR")
# Library directories searched first, separated by `os.pathsep`.
NATC_LIB_PATH = EnvVar("NATC_LIB_PATH")
# Directory that holds schedules/ and tuning_logs/.
NATC_WORKSPACE = EnvVar("NATC_WORKSPACE")
# 1: a call that no kernel covers raises instead of running on the reference.
NATC_STRICT = EnvVar("NATC_STRICT")
# 1 or a release such as 0.14.6: with natc.compat, `import natten` gives its interface.
NATC_AS_NATTEN = EnvVar("NATC_AS_NATTEN")
# 1: load libraries from directories that other users can write, too.
NATC_ALLOW_WRITABLE_LIBRARIES = EnvVar("NATC_ALLOW_WRITABLE_LIBRARIES")
# Files of public ed25519 keys (PEM), separated like NATC_LIB_PATH: a library is loaded only if the
# owner of one of them signed it.
NATC_TRUSTED_KEYS = EnvVar("NATC_TRUSTED_KEYS")
# on: build a missing kernel when it is first called, if the compiler is installed; readonly: only
# use kernels that such calls built; off: neither.
NATC_JIT = EnvVar("NATC_JIT")
# C compiler command used to link libraries, such as 'clang-17'.
NATC_CC = EnvVar("NATC_CC")

ALL: tuple[EnvVar, ...] = (
    NATC_CACHE_DIR,
    NATC_LIB_PATH,
    NATC_WORKSPACE,
    NATC_STRICT,
    NATC_AS_NATTEN,
    NATC_ALLOW_WRITABLE_LIBRARIES,
    NATC_TRUSTED_KEYS,
    NATC_JIT,
    NATC_CC,
)
