"""Make `import natten` find the interface of a NATTEN release, and undo it.

A finder at the head of `sys.meta_path` serves `natten` and its submodules, and the version that
`importlib.metadata` reports, because some programs read it there. Modules get their contents when
they are imported; nothing imports torch before.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from natc.compat.natten.releases import Release, release
from natc.env import NATC_AS_NATTEN
from natc.errors import ArgumentError, CompatError

_ROOT = "natten"
# Public submodules of NATTEN that are not served, and natc's replacements.
_ABSENT = {
    "autotuner": "`natc tune` searches for faster kernels.",
    "backends": "natten.na2d and its likes accept backend=, and natc chooses the kernel itself.",
    "profiler": "`natc bench` times kernels.",
    "token_permute": "natc's kernels read tokens in their own order; call natten.na2d directly.",
    "utils.testing": "it serves NATTEN's own tests; natc's tests are in its repository.",
}


def install(version: str | None = None) -> None:
    """Make `import natten` import natc's stand-in, in every module of this process.

    An installed NATTEN that is not imported yet stays unused. Installing again changes later
    imports only; a program keeps the modules that it has imported.

    Args:
        version: a release of NATTEN such as "0.14.6", or a series such as "0.21": `natten` then
            has exactly the names, signatures and defaults of that release. None: `natten` has the
            names of all releases and takes the calls of 0.14 to 0.17 and of 0.20 to 0.21; a call
            that fits only some releases is refused with their names.

    Raises:
        ArgumentError: natc does not know the release.
        CompatError: NATTEN itself is imported already.
    """
    wanted = release(version)
    present = sys.modules.get(_ROOT)
    if present is not None and not _is_ours(present):
        raise CompatError(
            f"natten {getattr(present, '__version__', '')} is already imported, from "
            f"{getattr(present, '__file__', 'an unknown place')}; call natc.compat.install() "
            "before the first import of natten."
        )
    uninstall()
    # Ahead of the finders that would find an installed NATTEN.
    sys.meta_path.insert(0, _Finder(wanted))


def uninstall() -> None:
    """Undo `install`, if it was called: the next `import natten` searches for NATTEN itself.

    Modules that imported names from the stand-in keep them.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name, module in list(sys.modules.items()):
        if (name == _ROOT or name.startswith(f"{_ROOT}.")) and _is_ours(module):
            del sys.modules[name]


def install_from_environment() -> None:
    """Call `install` as the variable NATC_AS_NATTEN says; do nothing if it is unset, 0 or off.

    Raises:
        ArgumentError: the variable is neither a switch (1, true, yes, on) nor a release.
        CompatError: NATTEN itself is imported already.
    """
    wanted = (NATC_AS_NATTEN.get() or "").strip()
    if wanted.lower() in ("", "0", "false", "no", "off"):
        return
    try:
        install(None if NATC_AS_NATTEN.flag() else wanted)
    except ArgumentError as error:
        raise ArgumentError(f"{NATC_AS_NATTEN.name}: {error}") from None


def _is_ours(module: ModuleType) -> bool:
    return isinstance(getattr(module, "__loader__", None), _Loader)


class _Finder(MetaPathFinder):
    """Finds `natten`, its submodules, and its distribution with the version."""

    def __init__(self, wanted: Release) -> None:
        self._loader = _Loader(wanted)
        self._version = wanted.version

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for `natten` and the submodules of the release, else None.

        Raises:
            CompatError: a submodule that natc replaces by something of its own.
        """
        if fullname.partition(".")[0] != _ROOT:
            return None
        if fullname != _ROOT and fullname not in self._loader.modules():
            instead = _ABSENT.get(fullname.removeprefix(f"{_ROOT}."))
            if instead is not None:
                raise CompatError(f"natc's stand-in has no {fullname}: {instead}")
            return None
        return importlib.util.spec_from_loader(
            fullname,
            self._loader,
            origin="natc.compat",
            is_package=fullname in (_ROOT, f"{_ROOT}.utils"),
        )

    def find_distributions(self, context: Any = None) -> Iterable[importlib.metadata.Distribution]:
        """Return the distribution `natten` for queries by this name and for all names."""
        name = getattr(context, "name", None)
        return [_Distribution(self._version)] if name in (None, _ROOT) else []


class _Loader(Loader):
    """Fills the modules of a release; all names are computed when the first one is imported."""

    def __init__(self, wanted: Release) -> None:
        self._wanted = wanted
        self._modules: dict[str, dict[str, Any]] | None = None

    def modules(self) -> dict[str, dict[str, Any]]:
        """Return the names that each module holds."""
        if self._modules is None:
            # These import torch.
            from natc.compat.natten import context
            from natc.compat.natten.interface import interface

            self._modules = interface(self._wanted)
            context.reset(kv_parallel=self._wanted.number >= (0, 20, 0))
        return self._modules

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return None: Python creates the module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module, and import the submodules that it imports in the release."""
        names = self.modules()[module.__name__]
        for submodule in names.get("__submodules__", ()):
            importlib.import_module(f"{module.__name__}.{submodule}")
        module.__dict__.update(
            {name: value for name, value in names.items() if name != "__submodules__"}
        )


class _Distribution(importlib.metadata.Distribution):
    """The distribution `natten`, for `importlib.metadata.version("natten")`."""

    def __init__(self, version: str) -> None:
        self._version = version

    def read_text(self, filename: str) -> str | None:
        """Return the text of METADATA, and None for all other files."""
        if filename not in ("METADATA", "PKG-INFO"):
            return None
        summary = "The interface of NATTEN, served by natc."
        version = f"Version: {self._version}\nSummary: {summary}\n"
        return f"Metadata-Version: 2.1\nName: {_ROOT}\n{version}"

    def locate_file(self, path: Any) -> Any:
        """Refuse: the distribution has no files."""
        raise FileNotFoundError(path)
