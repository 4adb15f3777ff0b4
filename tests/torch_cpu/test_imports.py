"""Which way imports go: nothing that runs a kernel may need what makes one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from c_library import HEAD_DIM, KERNEL_SIZE, SPECS, LibraryDirectory
from fresh_process import NO_COMPILER, run_fresh

import natc

PACKAGE = Path(natc.__file__).parent

# Importing any of these while running a kernel would make the compiler a need.
MAKERS = ("tvm", "xgboost", "natc.te", "natc.space", "natc.tune", "natc.build", "natc.cli")
RUNNERS = (
    "__init__.py",
    "compat",
    "compilers.py",
    "coverage.py",
    "coverage_calls.py",
    "elf.py",
    "env.py",
    "errors.py",
    "fallback.py",
    "files.py",
    "functional",
    "fused.py",
    "gradients.py",
    "launch.py",
    "manifest.py",
    "merge.py",
    "models",
    "nn.py",
    "operations.py",
    "ops",
    "reference",
    "runtime",
    "spec.py",
    "targets.py",
    "unfused.py",
    "window.py",
    "workspace.py",
)


def test_a_kernel_call_imports_no_compiler(kernels: LibraryDirectory) -> None:
    program = f"""
import natc
assert "torch" not in sys.modules, "import natc alone must be light"
import torch
query = torch.randn(2, 5, 6, 2, {HEAD_DIM})
out = natc.na2d(query, query, query, {KERNEL_SIZE})
assert not any(name.startswith("tvm.") for name in sys.modules)
import tvm_ffi
library = natc.runtime.explain(natc.spec.KernelSpec.parse("{SPECS[False]}")).choice.library
print(tvm_ffi.load_module(str(library.path))["calls"](), *out.shape)
"""
    assert run_fresh(NO_COMPILER + program) == f"1 2 5 6 2 {HEAD_DIM}\n"


def test_the_first_call_may_be_compiled(kernels: LibraryDirectory) -> None:
    program = f"""
import natc, torch
def attend(query):
    return natc.na2d(query, query, query, {KERNEL_SIZE})
query = torch.randn(2, 5, 6, 2, {HEAD_DIM})
compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(query)
torch.testing.assert_close(compiled, attend(query), rtol=0, atol=0)
print("equal")
"""
    assert run_fresh(NO_COMPILER + program) == "equal\n"


def test_every_public_name_can_be_had() -> None:
    program = """
import natc
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
    said = "module 'natc' has no attribute 'absent'\nna2d natc.models merge_attentions\n"
    assert run_fresh(NO_COMPILER + program) == said


def test_every_function_stays_where_it_was() -> None:
    for name in natc.functional.__all__:
        function = getattr(natc.functional, name)
        assert function.__name__ == name and function.__doc__
    for name in ("na1d", "na2d", "na3d", "neighborhood_attention"):
        assert getattr(natc, name) is getattr(natc.functional, name)


# What the reference may need of natc: it is the specification, and depends on nothing else.
SPECIFICATION = ("natc.errors", "natc.window", "natc.reference")


def test_the_reference_needs_nothing_but_windows() -> None:
    for path in sorted((PACKAGE / "reference").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("natc"):
                assert str(node.module).startswith(SPECIFICATION), f"{path}: {node.module}"


@pytest.mark.parametrize("name", RUNNERS)
def test_what_runs_kernels_does_not_even_mention_what_makes_them(name: str) -> None:
    place = PACKAGE / name
    paths = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                module = node.module or ""
                imported = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for one in imported:
                assert not any(f"{one}.".startswith(f"{maker}.") for maker in MAKERS), (
                    f"{path.relative_to(PACKAGE)} imports {one}"
                )
