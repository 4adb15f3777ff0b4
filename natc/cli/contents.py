"""What a library holds, in few words."""

from __future__ import annotations

from collections.abc import Iterable

from natc.operations import FAMILIES, operations_of
from natc.spec import KernelSpec


def contents(spec: KernelSpec, operations: Iterable[str]) -> list[str]:
    """Return the families that a library has all operations of, then its other operations.

    spec: of the library; operations: the names of what it holds, as in its manifest.
    """
    left = list(operations)
    found = []
    for family in FAMILIES:
        members = operations_of(spec, (family,))
        if members and set(members) <= set(left):
            found.append(family)
            left = [name for name in left if name not in members]
    return found + sorted(left)
