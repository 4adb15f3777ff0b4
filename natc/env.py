"""Every environment variable that natc reads, in one place, so that `natc doctor` can show all."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from natc.errors import NatcError


@dataclass(frozen=True)
class EnvVar:
    """An environment variable that natc reads.

    choices: the words that `word` accepts; without any, it accepts all.
    """

    name: str
    choices: tuple[str, ...] = ()

    def get(self) -> str | None:
        """Return the value as text, or None when it is unset or empty."""
        return os.environ.get(self.name) or None

    def set(self, value: str) -> None:
        """Set the value for this process and those that it starts."""
        os.environ[self.name] = value

    def word(self) -> str:
        """Return the value in lower case and without blanks around it, "" when it is unset.

        Raises NatcError for a value that is none of the choices.
        """
        word = (self.get() or "").strip().lower()
        if word and self.choices and word not in self.choices:
            raise NatcError(
                f"{self.name} is {word!r}; it must be one of {', '.join(self.choices)}."
            )
        return word

    def flag(self) -> bool:
        """Return whether the value is one of 1, true, yes, on (any case)."""
        return self.word() in ("1", "true", "yes", "on")

    def path(self) -> Path | None:
        """Return the value as an absolute path, or None when it is unset; `~` is the user's home.

        Raises NatcError for a user that does not exist and for a name that is too long.
        """
        text = self.get()
        return None if text is None else self._path(text)

    def paths(self) -> list[Path]:
        """Return the parts of the value, split at `os.pathsep`, as `path` returns the value."""
        return [self._path(part) for part in (self.get() or "").split(os.pathsep) if part]

    def _path(self, text: str) -> Path:
        try:
            path = Path(text).expanduser().absolute()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                path.stat()
        except RuntimeError as error:
            raise NatcError(
                f"{self.name} has {text[:80]!r}, and there is no home directory of that user; "
                "give a path that begins with /."
            ) from error
        except OSError as error:
            raise NatcError(
                f"{self.name} has {text[:80]!r}, which cannot be a path of this system: "
                f"{(error.strerror or str(error)).lower()}."
            ) from error
        return path


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
NATC_JIT = EnvVar("NATC_JIT", ("on", "off", "readonly"))
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
