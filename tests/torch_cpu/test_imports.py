"""A kernel runs in a process that cannot import the compiler; public names resolve."""

from __future__ import annotations

from support.c_library import HEAD_DIM, KERNEL_SIZE, SPECS, LibraryDirectory
from support.fresh_process import NO_COMPILER, run_fresh

import natc


def test_kernels_and_public_names_need_no_compiler(kernels: LibraryDirectory) -> None:
    program = f"""
import natc
assert "torch" not in sys.modules, "import natc alone must be light"
import torch
def attend(query):
    return natc.na2d(query, query, query, {KERNEL_SIZE})

# The first call may be a compiled one.
query = torch.randn(2, 5, 6, 2, {HEAD_DIM})
compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(query)
out = attend(query)
torch.testing.assert_close(compiled, out, rtol=0, atol=0)
assert not any(name.startswith("tvm.") for name in sys.modules)
import tvm_ffi
library = natc.runtime.explain(natc.spec.KernelSpec.parse("{SPECS[False]}")).choice.library
print(tvm_ffi.load_module(str(library.path))["calls"](), *out.shape)

for name in natc.__all__:
    getattr(natc, name)
    assert name in dir(natc)
try:
    natc.absent
except AttributeError as error:
    print(error)
from natc import *
print(na2d.__name__, models.__name__, merge_attentions.__name__)
"""
    assert run_fresh(NO_COMPILER + program).splitlines() == [
        f"2 2 5 6 2 {HEAD_DIM}",
        "module 'natc' has no attribute 'absent'",
        "na2d natc.models merge_attentions",
    ]


def test_every_function_stays_where_it_was() -> None:
    for name in natc.functional.__all__:
        function = getattr(natc.functional, name)
        assert function.__name__ == name and function.__doc__
    for name in ("na1d", "na2d", "na3d", "neighborhood_attention"):
        assert getattr(natc, name) is getattr(natc.functional, name)
