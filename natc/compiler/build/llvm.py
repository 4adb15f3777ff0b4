"""Kernels for CPUs: machine code and natc's own threads in one shared library."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path

import tvm

from natc.compiler.build.cpu_code import cpu_code
from natc.compiler.build.lower import entry_module
from natc.host.c_compiler import link_library
from natc.host.toolchain import machine_of
from natc.spec import KernelSpec
from natc.store.manifest import function_name
from natc.targets import Target

ASSEMBLY = "kernels.s"


def build_llvm(
    spec: KernelSpec,
    target: Target,
    decisions: Mapping[str, int],
    output: Path,
    directory: Path,
    *,
    entries: Sequence[str],
    portable: bool = False,
    keep_assembly: bool = False,
) -> None:
    """Compile a kernel for a CPU into the shared library `output`.

    entries: names of operations. directory: for intermediate files. portable: see `link_library`.
    keep_assembly: also write LLVM's assembly text into `directory`, as `ASSEMBLY`. Raises
    BuildError or CompilerNotFound.
    """
    names = {entry: function_name(spec, entry, target) for entry in entries}
    module = entry_module(spec, target, decisions, names)
    options = {"portable": portable, "keep_assembly": keep_assembly}
    link(module, target, names.values(), output, directory, **options)


def link(
    module: tvm.IRModule,
    target: Target,
    names: Collection[str],
    output: Path,
    directory: Path,
    *,
    portable: bool = False,
    keep_assembly: bool = False,
) -> None:
    """Compile a module's functions into the shared library `output`, which exports `names`.

    `build_llvm` explains the other arguments.
    """
    code = cpu_code(module, target).mod
    kernels = directory / "kernels.o"
    code.write_to_file(str(kernels), "o")
    if keep_assembly:
        (directory / ASSEMBLY).write_text(code.inspect_source("asm"))
    with resources.as_file(
        resources.files("natc.compiler.build") / "launcher" / "threads.c"
    ) as threads:
        link_library(
            output,
            [threads, kernels],
            exported=[f"__tvm_ffi_{name}" for name in names],
            directory=directory,
            machine=machine_of(target),
            portable=portable,
        )
