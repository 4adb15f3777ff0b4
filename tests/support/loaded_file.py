"""Python files that are in no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_file(path: Path, name: str | None = None) -> ModuleType:
    """Run a file and return it as a module; name: of the module, by default the file's.

    An import of that name may find another module, for example of Python's.
    """
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if name is not None:
        # A package imports its own modules by its name.
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
