"""Importing TVM quickly, in a process that builds kernels and does nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# numpy's library for linear algebra would start a thread for each core, which spins for a while.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
# TVM's own switch: it loads no support for GPUs and accelerators.
_NO_DEVICES = {"TVM_DEVICE_BACKEND_AUTOLOAD": "0"}


def import_tvm_alone(kind: str | None = None) -> None:
    """Import TVM without torch, unless this process has imported TVM or torch already.

    kind: the kind of all targets that this process builds for; None for several. For `llvm`, TVM
    loads without some parts of its own, too. Importing torch takes longer than building a
    kernel, and libraries have the same bytes either way.
    """
    if "torch" in sys.modules or "tvm" in sys.modules:
        return
    # An entry of None makes an import fail. `tvm_ffi` imports torch if it can, so that kernels
    # take torch's tensors.
    modules: dict[str, ModuleType | None] = {"torch": None}
    variables = _ONE_THREAD
    if kind == "llvm":
        # TVM runs without its part for many workers; a failed look-up in there takes 0.2 s where
        # the interpreter has debug information.
        modules |= {"tvm.runtime.disco": None, "tvm.relax": _without_networks()}
        variables = {**_ONE_THREAD, **_NO_DEVICES}
    with _added(sys.modules, modules), _added(os.environ, variables):
        import tvm  # noqa: F401


def _without_networks() -> ModuleType:
    """Return a stand-in for TVM's language for networks, with the one name that TVM uses."""
    relax: Any = ModuleType("tvm.relax")
    relax.Function = type("Function", (), {})
    return relax


@contextmanager
def _added(entries: Any, more: Mapping[str, Any]) -> Iterator[None]:
    """Add entries to a mapping that it does not have; remove them at the end."""
    added = {name: value for name, value in more.items() if name not in entries}
    entries.update(added)
    try:
        yield
    finally:
        for name in added:
            del entries[name]
