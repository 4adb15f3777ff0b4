"""The releases of NATTEN whose interfaces natc serves."""

from __future__ import annotations

from dataclasses import dataclass

from natc.errors import ArgumentError

RELEASES = (
    "0.14.1", "0.14.2", "0.14.4", "0.14.5", "0.14.6", "0.15.0", "0.15.1", "0.17.0", "0.17.1",
    "0.17.3", "0.17.4", "0.17.5", "0.20.0", "0.20.1", "0.21.0", "0.21.1", "0.21.5", "0.21.6",
    "0.21.7",
)  # fmt: skip

# The union of releases starts from this one, which has most of the names that programs use.
MOST_COMMON = "0.17.4"


@dataclass(frozen=True)
class Release:
    """A release of NATTEN, or the union of all releases.

    version: three numbers, such as 0.17.4. union: the names of all other releases are added, and
    calls are accepted in the form of either generation, 0.14 to 0.17 and 0.20 to 0.21.
    """

    version: str
    union: bool = False

    @property
    def number(self) -> tuple[int, int, int]:
        """The version as three integers, for comparisons."""
        major, minor, patch = map(int, self.version.split("."))
        return major, minor, patch

    @property
    def takes_even(self) -> bool:
        """Whether fused attention takes even kernel sizes."""
        return self.union or self.number >= (0, 17, 5)

    @property
    def smallest(self) -> int:
        """The least kernel size. natc has windows of 1, which NATTEN does not take."""
        return 1 if self.union else 2


def release(version: str | None) -> Release:
    """Return the release called `version`; None is the union of all releases.

    A version of two numbers is the last release of that series. A suffix after a plus sign, as in
    0.17.1+torch230cu121, is ignored.

    Raises:
        ArgumentError: natc does not know the version.
    """
    if version is None:
        return Release(MOST_COMMON, union=True)
    plain = version.partition("+")[0].strip()
    if plain in RELEASES:
        return Release(plain)
    if plain.count(".") == 1:
        for candidate in reversed(RELEASES):
            if candidate.startswith(f"{plain}."):
                return Release(candidate)
    raise ArgumentError(
        f"version is {version!r}; it must be None, a series such as '0.17', or a release: "
        f"{', '.join(RELEASES)}."
    )
