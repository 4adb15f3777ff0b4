"""Putting the interface of a NATTEN release where `import natten` finds it, and taking it away.

A finder at the head of `sys.meta_path` answers for `natten` and its submodules, and for the
version that `importlib.metadata` reports, which is where some programs look. Modules are filled
when they are imported; until then nothing imports torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from email.message import Message
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from natc.compat.natten.releases import Release, release
from natc.env import NATC_AS_NATTEN
from natc.errors import ArgumentError, CompatError

_ROOT = "natten"


def install(version: str | None = None) -> None:
    """Make `import natten`, here and in every module of this process, give natc's stand-in.

    A NATTEN that is installed but not imported yet stays unused. Installing again replaces the
    interface for imports to come; what was imported before keeps working as it was.

    Args:
        version: a release of NATTEN such as "0.14.6" or a series such as "0.21", whose names,
            signatures and defaults are then given exactly. None: those of 0.17.4, and beside them
            names of other releases that it lacks, which together serve most programs.

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
            "before anything imports natten."
        )
    uninstall()
    # In front, since an installed NATTEN would be found by the finders behind.
    sys.meta_path.insert(0, _Finder(wanted))


def uninstall() -> None:
    """Undo `install`: the next `import natten` looks for NATTEN itself. No error if there is none.

    Modules that imported names from the stand-in keep them.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name, module in list(sys.modules.items()):
        if (name == _ROOT or name.startswith(f"{_ROOT}.")) and _is_ours(module):
            del sys.modules[name]


def install_from_environment() -> None:
    """Install what the variable NATC_AS_NATTEN asks for: nothing if it is unset, 0 or off.

    Raises:
        ArgumentError: it is neither a switch (1, true, yes, on) nor a release.
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
    """Answers for `natten`, its submodules and its version."""

    def __init__(self, wanted: Release) -> None:
        self._loader = _Loader(wanted)
        self._version = wanted.version

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for what the release has."""
        if fullname.partition(".")[0] != _ROOT:
            return None
        if fullname != _ROOT and fullname not in self._loader.modules():
            return None
        return importlib.util.spec_from_loader(
            fullname, self._loader, origin="natc.compat", is_package=fullname == _ROOT
        )

    def find_distributions(self, context: Any = None) -> Iterable[importlib.metadata.Distribution]:
        """Return the distribution `natten` to whom asks for it, or for all there are."""
        name = getattr(context, "name", None)
        return [_Distribution(self._version)] if name in (None, _ROOT) else []


class _Loader(Loader):
    """Fills the modules of a release. The names are made once, when the first is imported."""

    def __init__(self, wanted: Release) -> None:
        self._wanted = wanted
        self._modules: dict[str, dict[str, Any]] | None = None

    def modules(self) -> dict[str, dict[str, Any]]:
        """Return the names that each module holds."""
        if self._modules is None:
            # Imports torch.
            from natc.compat.natten.interface import interface

            self._modules = interface(self._wanted)
        return self._modules

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to Python."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Give a module its names; the package imports the submodules that its release did."""
        names = self.modules()[module.__name__]
        if module.__name__ == _ROOT:
            for submodule in names["__submodules__"]:
                importlib.import_module(f"{_ROOT}.{submodule}")
        module.__dict__.update(
            {name: value for name, value in names.items() if name != "__submodules__"}
        )


class _Distribution(importlib.metadata.Distribution):
    """What `importlib.metadata.version("natten")` reads."""

    def __init__(self, version: str) -> None:
        self._version = version

    def read_text(self, filename: str) -> str | None:
        """Return the text of METADATA; there are no other files."""
        if filename not in ("METADATA", "PKG-INFO"):
            return None
        message = Message()
        message["Metadata-Version"] = "2.1"
        message["Name"] = _ROOT
        message["Version"] = self._version
        message["Summary"] = "The interface of NATTEN, served by natc."
        return message.as_string()

    def locate_file(self, path: Any) -> Any:
        """Refuse: the distribution has no files."""
        raise FileNotFoundError(path)
