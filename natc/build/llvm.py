"""Kernels for CPUs: machine code and natc's own threads in one shared library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import tvm
from tvm.ir import IRModule

from natc.build.c_compiler import link_library
from natc.build.lower import ENTRIES, compiler_target, scheduled
from natc.spec import KernelSpec
from natc.targets import Target


def entry_module(spec: KernelSpec, target: Target, decisions: Mapping[str, int]) -> IRModule:
    """Return one module with the scheduled function of every entry, named after the spec."""
    module = IRModule({})
    for entry, with_lse in ENTRIES.items():
        name = function_name(spec, entry)
        module.update(scheduled(spec, target, decisions, with_lse=with_lse, name=name))
    return module


def function_name(spec: KernelSpec, entry: str) -> str:
    """Return the exported name of an entry."""
    return f"{spec.name}_{entry}"


def build_llvm(
    spec: KernelSpec, target: Target, decisions: Mapping[str, int], output: Path, directory: Path
) -> dict[str, dict[str, str]]:
    """Compile a kernel for a CPU into the shared library `output`; return its entries.

    directory: for intermediate files. Raises BuildError or CompilerNotFound.
    """
    module = tvm.compile(entry_module(spec, target, decisions), target=compiler_target(target))
    machine_code = directory / "kernels.o"
    module.mod.write_to_file(str(machine_code), "o")
    names = {entry: function_name(spec, entry) for entry in ENTRIES}
    with resources.as_file(resources.files("natc.build") / "launcher" / "threads.c") as threads:
        link_library(
            output,
            [threads, machine_code],
            exported=[f"__tvm_ffi_{name}" for name in names.values()],
            directory=directory,
        )
    return {entry: {"llvm": name} for entry, name in names.items()}
