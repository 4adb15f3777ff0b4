"""Kernel libraries made from `attention.c`: real machine code without the compiler of natc."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm_ffi
import tvm_ffi.libinfo

from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store.manifest import LibraryTarget, function_name
from natc.targets import Target
from support import tiny_library
from support.library_files import add_code, library_of

SOURCE = Path(__file__).with_name("attention.c")
KERNEL_SIZE, HEAD_DIM = 3, 8
SPECS = {
    rpb: KernelSpec(2, (KERNEL_SIZE, KERNEL_SIZE), HEAD_DIM, "float32", rpb)
    for rpb in (False, True)
}
OPERATIONS = ("forward", "forward_lse")


def compile_c(spec: KernelSpec, output: Path, *, factor: int = 1) -> Path:
    """Compile `attention.c` for a spec and this CPU; factor scales the output."""
    names = [function_name(spec, operation, detect_host_cpu()) for operation in OPERATIONS]
    flags = [
        "-O1", "-std=c11", f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}",
        f"-DKERNEL_SIZE={spec.kernel_size[0]}", f"-DHEAD_DIM={spec.head_dim}",
        f"-DRPB={int(spec.rpb)}", f"-DFACTOR={factor}", f"-DFORWARD=__tvm_ffi_{names[0]}",
        f"-DFORWARD_LSE=__tvm_ffi_{names[1]}", "-lm",
    ]  # fmt: skip
    if platform.system() == "Darwin":
        flags.append("-Wl,-undefined,dynamic_lookup")
    return tiny_library.compile_c(SOURCE.read_text(), output, *flags)


@dataclass(frozen=True)
class LibraryDirectory:
    """A library directory that tests put libraries into."""

    path: Path
    compiled: dict[bool, Path]

    def add(self, spec: KernelSpec, target: Target | None = None, **changes: Any) -> Path:
        """Put a library and its manifest into the directory; return the manifest's path.

        target: the target in the manifest, by default this machine.
        changes: arguments of `make_manifest` to set.
        """
        target = target or detect_host_cpu()
        code = self.compiled[spec.rpb].read_bytes()
        fields = {"operations": OPERATIONS, **changes}
        return add_code(
            self.path, code, spec, LibraryTarget(target.kind, (target.arch,)), **fields
        )

    def calls(self, spec: KernelSpec) -> int:
        """Return how many calls of a spec's library, as this process loaded it, are complete."""
        library = library_of(self.path / f"{spec.name}.{detect_host_cpu().name}.json")
        return int(tvm_ffi.load_module(str(library))["calls"]())
