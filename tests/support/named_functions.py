"""A library whose functions only tell their names: which function a manifest leads to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from natc.errors import LibraryError
from natc.host.detect import detect_host_cpu
from natc.operations import OPERATIONS, operations_of
from natc.runtime import Facts, load, select
from natc.runtime.scan import scan
from natc.spec import KernelSpec
from natc.store import elf
from natc.store.manifest import ALIGNMENT, LibraryTarget, function_name
from support.library_files import add_code
from support.tiny_library import compile_c

SPEC = KernelSpec.make(3, head_dim=8)
_HOST = detect_host_cpu()
TARGET = LibraryTarget(_HOST.kind, (_HOST.arch,))
# A symbol of the system's C library gives the library a glibc that it needs.
_SYSTEM = """
#include <stdlib.h>
void *__tvm_ffi_none(void) { return malloc(8); }
"""
_FUNCTION = """
extern void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
int __tvm_ffi_%s(void) {
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "%s");
  return -1;
}
"""


def compile_named(spec: KernelSpec = SPEC) -> bytes:
    """Return the code of a library with every operation of a spec, for this CPU."""
    names = [function_name(spec, operation, _HOST) for operation in operations_of(spec)]
    source = _SYSTEM + "".join(_FUNCTION % (name, name) for name in names)
    with tempfile.TemporaryDirectory() as scratch:
        return compile_c(source, Path(scratch) / "named.so").read_bytes()


def add_named(directory: Path, code: bytes) -> Path:
    """Put such a library and its manifest into a directory; return the manifest's path."""
    return add_code(
        directory, code, SPEC, TARGET, operations_of(SPEC), glibc=elf.read(code).glibc_text
    )


def calls(directory: Path) -> Iterator[str]:
    """Call every operation of every kernel that a directory's manifests offer.

    Yields `right` if the function of that operation ran, or else the error, which names a file.
    Raises AssertionError if another function ran, or with another alignment.
    """
    search = scan([directory])
    for rejection in search.unreadable:
        yield f"{rejection.path} {rejection.reason}"
    facts = Facts("cpu", _HOST)
    for spec in {SPEC, *(library.spec for library in search.libraries)}:
        for operation in OPERATIONS:
            choice, rejections = select(search.libraries, spec, facts, operation=operation)
            if choice is None:
                yield from (f"{item.path} {item.reason}" for item in rejections)
                continue
            try:
                kernel = load.load(choice)
            except LibraryError as error:
                yield str(error)
                continue
            try:
                kernel.function()
            except RuntimeError as error:
                name = str(error).strip()
            if name != function_name(spec, operation, _HOST):
                raise AssertionError(f"{name} ran for {operation} of {spec}")
            if kernel.alignment != ALIGNMENT["llvm"]:
                raise AssertionError(f"alignment is {kernel.alignment}")
            yield "right"
