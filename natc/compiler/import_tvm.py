"""Importing TVM quickly, in a process that builds and runs no kernel."""

from __future__ import annotations

import os
import sys
from typing import Any

_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def import_tvm_alone() -> None:
    """Import TVM without torch, unless this process has imported torch or TVM.

    `tvm_ffi` imports torch if it can, so that kernels take torch's tensors. A process that only
    builds has none, and importing torch takes as long as building a kernel. The library has the
    same bytes either way.
    """
    if "torch" in sys.modules or "tvm" in sys.modules:
        return
    modules: dict[str, Any] = sys.modules
    # An entry of None makes `import torch` raise ModuleNotFoundError.
    modules["torch"] = None
    # numpy's library for linear algebra starts a thread for each core, and these spin for a while.
    unset = _BLAS_THREADS not in os.environ
    os.environ.setdefault(_BLAS_THREADS, "1")
    try:
        import tvm  # noqa: F401
    finally:
        del modules["torch"]
        if unset:
            del os.environ[_BLAS_THREADS]
