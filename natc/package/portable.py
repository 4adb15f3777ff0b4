"""Checks that a library runs on other systems: the symbols, libraries and glibc that it needs."""

from __future__ import annotations

from natc.store import elf
from natc.store.fatbin import images
from natc.store.manifest import Manifest
from natc.targets import Target

# Hugging Face's kernels ask for it, too.
CEILING = elf.PORTABLE_GLIBC
PREFIX = "__tvm_ffi_"
_SYSTEM = ("libc.so.", "libm.so.", "libpthread.so.", "libdl.so.", "ld-linux-")
# The C interface of libtvm_ffi, which is in the process and never loaded by the library.
_TVM_FFI = "TVMFFI"


def needs_problems(library: elf.SharedLibrary) -> list[str]:
    """Return, as clauses, the libraries and symbols that a library must not need or show."""
    problems = []
    foreign = [name for name in library.needed if not name.startswith(_SYSTEM)]
    if foreign:
        problems.append(f"needs {', '.join(foreign)}, which is not part of every system")
    shown = [name for name in library.defined if not name.startswith(PREFIX)]
    if shown:
        problems.append(f"shows {', '.join(shown[:5])}, which is not a kernel")
    unknown = [
        symbol.name
        for symbol in library.undefined
        # A symbol of the system has a version; a weak symbol may be missing.
        if not symbol.weak and not symbol.version and not symbol.name.startswith(_TVM_FFI)
    ]
    if unknown:
        problems.append(f"needs {', '.join(unknown[:5])}, which nothing provides")
    return problems


def glibc_problem(library: elf.SharedLibrary) -> str | None:
    """Return a clause if a library needs a glibc newer than `CEILING`, or None."""
    if library.glibc <= CEILING:
        return None
    names = [
        symbol.name
        for symbol in library.undefined
        if symbol.version.startswith("GLIBC_")
        and elf.parse_version(symbol.version.removeprefix("GLIBC_")) > CEILING
    ]
    return f"needs glibc {library.glibc_text} or newer, for {', '.join(names[:5])}"


def manifest_problems(library: elf.SharedLibrary, manifest: Manifest) -> list[str]:
    """Return, as clauses, the differences of a library from its manifest."""
    problems = []
    kind, archs = manifest.target.kind, manifest.target.archs
    if kind == "llvm" and library.machine != Target(kind, archs[0]).properties.processor:
        problems.append(f"is for {library.machine}, not for {archs[0]} as its manifest says")
    there = set(library.defined)
    missing = [
        function
        for functions in manifest.entries.values()
        for function in functions.values()
        if f"{PREFIX}{function}" not in there
    ]
    if missing:
        problems.append(f"has no function {', '.join(missing[:5])}, which its manifest names")
    if manifest.glibc and manifest.glibc != library.glibc_text:
        problems.append(
            f"needs glibc {library.glibc_text or 'of any version'}, not {manifest.glibc} as its "
            "manifest says"
        )
    if kind == "cuda":
        held = {image.arch for image in images(library.device_code)}
        lacking = [arch for arch in archs if arch not in held]
        if lacking:
            problems.append(f"has no device code for {', '.join(lacking)}")
        if manifest.ptx and manifest.ptx.replace("sm_", "compute_") not in held:
            problems.append(f"has no PTX of {manifest.ptx}, which its manifest names")
    return problems


def platform_tag(libraries: list[elf.SharedLibrary]) -> str:
    """Return the tag of a wheel with some libraries, such as `manylinux_2_28_x86_64`.

    Raises ElfError if they are for several processors.
    """
    machines = sorted({library.machine for library in libraries})
    if len(machines) != 1:
        raise elf.ElfError(f"the libraries are for {' and '.join(machines)}")
    newest = max(CEILING, *(library.glibc for library in libraries))
    return f"manylinux_{newest[0]}_{newest[1]}_{machines[0]}"
