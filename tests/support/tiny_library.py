"""Shared libraries that look like natc's, made by the system's C compiler in a moment."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from natc.host.detect import host_machine
from natc.spec import KernelSpec
from natc.store.manifest import LibraryTarget, function_name
from natc.targets import Target
from support.library_files import add_code

SPEC = KernelSpec.make(7, rpb=True)
ARCH = {"x86_64": "x86-64-v2", "aarch64": "aarch64"}[host_machine()]
_SOURCE = """
#include <stdlib.h>
extern void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
int __tvm_ffi_%s(void) {
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "tiny");
  return malloc(8) == NULL;
}
"""


def compile_c(source: str, output: Path, *flags: str) -> Path:
    """Compile C into a shared library."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-x", "c", "-fPIC", "-shared", "-s", "-o", str(output), "-", *flags]
    subprocess.run(command, input=source.encode(), check=True)
    return output


@functools.cache
def _compiled(source: str) -> bytes:
    """Return the shared library of C, compiled once."""
    with tempfile.TemporaryDirectory() as scratch:
        return compile_c(source, Path(scratch) / "tiny.so").read_bytes()


def add_library(
    directory: Path, spec: KernelSpec = SPEC, source: str = "", **changes: Any
) -> Path:
    """Put a library with a forward and its manifest into a directory; return the manifest's path.

    source: C that is added to the library's. changes: arguments of `make_manifest` to set.
    """
    name = function_name(spec, "forward", Target("llvm", ARCH))
    fields: dict[str, Any] = {
        "natc": "0.1.0",
        "target": LibraryTarget("llvm", (ARCH,)),
        "built_at": "2001-02-03T04:05:06+00:00",
        **changes,
    }
    return add_code(directory, _compiled(_SOURCE % name + source), spec, **fields)


def add_wheel(site: Path) -> None:
    """Write the metadata of a wheel of libraries, `natc-kernels-tiny`, into a site directory."""
    info = site / "natc_kernels_tiny-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: natc-kernels-tiny\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[natc.kernels]\ntiny = natc_kernels_tiny\n")
