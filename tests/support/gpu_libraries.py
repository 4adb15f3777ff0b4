"""The kernels in NATC_LIB_PATH and natc's own directories that run on this machine's GPU.

Their tests need no compiler. To make libraries, here or elsewhere: `natc build --kernel 7 --target
cuda --arch sm_90 -o DIRECTORY`, for several kernels; then NATC_LIB_PATH=DIRECTORY.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from natc import runtime
from natc.spec import KernelSpec
from natc.targets import cuda_target_for

if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)

MACHINE = cuda_target_for(torch.cuda.get_device_capability(0))


def has(spec: KernelSpec, *operations: str) -> bool:
    """Return whether libraries for this GPU hold these operations of a kernel."""
    return all(
        runtime.explain(spec, "cuda", operation=operation).choice is not None
        for operation in operations
    )


def specs(wanted: Callable[[KernelSpec], object], what: str) -> list[KernelSpec]:
    """Return the kernels that are wanted; if there are none, skip the calling module.

    what: the kernels that are wanted, in words, after `no library`.
    """
    available = sorted(
        {library.spec for library in runtime.kernels() if wanted(library.spec)}, key=str
    )
    if not available:
        pytest.skip(
            f"no library {what} for {MACHINE} was found in NATC_LIB_PATH or natc's own "
            f"directories; build some: natc build --kernel 7 --target cuda --arch {MACHINE.arch} "
            "-o DIRECTORY, and set NATC_LIB_PATH=DIRECTORY",
            allow_module_level=True,
        )
    return available
