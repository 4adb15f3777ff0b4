"""Few combinations of choices that hold every pair, or every three, of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence


def covering(combinations: Sequence[Mapping[str, int]], together: int) -> list[Mapping[str, int]]:
    """Pick combinations until each `together` choices that occur in one are in a picked one."""

    def groups(combination: Mapping[str, int]) -> set[tuple[tuple[str, int], ...]]:
        return set(itertools.combinations(combination.items(), together))

    missing = set().union(*map(groups, combinations))
    picked = []
    while missing:
        picked.append(max(combinations, key=lambda each: len(missing & groups(each))))
        missing -= groups(picked[-1])
    return picked
