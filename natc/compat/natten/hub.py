"""A module object to replace the NATTEN that `kernels.get_kernel` loads from the hub."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from natc.compat.natten.releases import RELEASES, Release
from natc.errors import ArgumentError

_REPOSITORIES = ("shi-labs/natten", "kernels-community/natten")


def get_kernel(repo_id: str, **options: Any) -> ModuleType:
    """Return the interface of the newest NATTEN as a module, with na1d, na2d, na3d and the others.

    It takes the arguments of `kernels.get_kernel` and ignores all but the first: it downloads
    nothing and has one version. `import natten` is not affected.

    Args:
        repo_id: "shi-labs/natten" or "kernels-community/natten".
        options: revision, version, backend, and whatever else `kernels.get_kernel` takes.

    Raises:
        ArgumentError: another repository.
    """
    if repo_id not in _REPOSITORIES:
        raise ArgumentError(
            f"repo_id is {repo_id!r}; natc.compat serves {' and '.join(_REPOSITORIES)} only."
        )
    # Imports torch.
    from natc.compat.natten.interface import interface

    modules = {}
    for name, names in interface(Release(RELEASES[-1])).items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(names)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, modules[name])
    return modules["natten"]
