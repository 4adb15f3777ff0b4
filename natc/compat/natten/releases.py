"""The releases of NATTEN whose interface can be had."""

from __future__ import annotations

from dataclasses import dataclass

from natc.errors import ArgumentError

RELEASES = (
    "0.14.1", "0.14.2", "0.14.4", "0.14.5", "0.14.6", "0.15.0", "0.15.1", "0.17.0", "0.17.1",
    "0.17.3", "0.17.4", "0.17.5", "0.20.0", "0.20.1", "0.21.0", "0.21.1", "0.21.5", "0.21.6",
    "0.21.7",
)  # fmt: skip

# The one release that has nearly every name that programs use; see `Release.union`.
MOST_COMMON = "0.17.4"


@dataclass(frozen=True)
class Release:
    """A release, and whether it is joined with what other releases had.

    version: three numbers, such as 0.17.4. union: beside the names of the release there are those
    of others that it lacks, where the two do not contradict each other.
    """

    version: str
    union: bool = False

    @property
    def number(self) -> tuple[int, int, int]:
        """The version as three integers, for comparisons."""
        major, minor, patch = map(int, self.version.split("."))
        return major, minor, patch


def release(version: str | None) -> Release:
    """Return the release that a version names; None is 0.17.4 with the names of the others.

    A version of two numbers is the last release of that series. What follows a plus sign, as in
    0.17.1+torch230cu121, is ignored.

    Raises:
        ArgumentError: no such release is known.
    """
    if version is None:
        return Release(MOST_COMMON, union=True)
    plain = version.partition("+")[0].strip()
    if plain in RELEASES:
        return Release(plain)
    if plain.count(".") == 1:
        for known in reversed(RELEASES):
            if known.startswith(f"{plain}."):
                return Release(known)
    raise ArgumentError(
        f"version is {version!r}; it must be None, a series such as '0.17', or one of "
        f"{', '.join(RELEASES)}."
    )
