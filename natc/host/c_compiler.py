"""Linking libraries, and running compilers with messages that a user can act on."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from natc import env
from natc.errors import BuildError, NatcError
from natc.host.detect import host_machine
from natc.host.toolchain import ZIGLANG, find_c_compiler, find_nvcc, is_ziglang
from natc.store import workspace
from natc.store.files import make_directory, writable

_LAST_LINES = 12
# The files of glibc that kernels need; since glibc 2.34 the last two are empty.
_C_LIBRARY = ("libc.so.", "libm.so.", "libdl.so.", "libpthread.so.")


def zig_caches(directory: Path) -> dict[str, str]:
    """Return the unset environment variables, with values, that tell zig where to keep its files.

    Objects go below `directory`, because zig would keep them for ever. Files that every build
    needs go into natc's cache, or below `directory` if the cache cannot be written: by default
    zig uses the user's home, and never ends if it cannot write there.
    """
    kept = workspace.cache_dir() / "zig"
    with contextlib.suppress(NatcError):
        make_directory(kept)
    if not (kept.is_dir() and writable(kept)):
        kept = directory / "zig-global"
    places = {"ZIG_LOCAL_CACHE_DIR": directory / "zig", "ZIG_GLOBAL_CACHE_DIR": kept}
    return {name: str(path) for name, path in places.items() if not os.environ.get(name)}


def cuda_version() -> tuple[int, ...]:
    """Return the version of the CUDA toolkit that compiles, such as (13, 0), or () if unknown.

    Raises CompilerNotFound.
    """
    done = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"release (\d+)\.(\d+)", done.stdout)
    return tuple(map(int, match.groups())) if match else ()


def link_library(
    output: Path,
    sources: Sequence[Path],
    *,
    exported: Sequence[str],
    directory: Path,
    machine: str | None = None,
    portable: bool = False,
) -> None:
    """Link C sources and objects into the shared library `output`.

    exported: the only functions that the library shows. directory: for intermediate files.
    machine: the processor it is for, by default this one. portable: link for older systems, too,
    if `find_c_compiler` finds such a compiler. Raises CompilerNotFound or BuildError.
    """
    # Hides symbols that another library might overwrite by name.
    script = directory / "exported"
    names = " ".join(f"{name};" for name in exported)
    # With a wildcard, because lld refuses a name that a library does not define.
    script.write_text(f"{{ global: {names} __tvm_ffi__library_ctx*; local: *; }};\n")
    compiler = find_c_compiler(machine, portable=portable)
    # Stripped, because debug information would hold paths of this machine.
    options = ["-shared", "-s", "-o", str(output)]
    doing, caches = "linking the library", zig_caches(directory)
    system = _system_libraries()
    if portable or not is_ziglang(compiler) or machine not in (None, host_machine()) or not system:
        libraries = [f"-Wl,--version-script={script}", "-lpthread", "-ldl", "-lm"]
        files = map(str, sources)
        run([*compiler, "-O2", "-fPIC", *options, *files, *libraries], doing, **caches)
        return
    # ziglang would first build a C library of its own, which takes seconds if its cache is empty.
    # Its linker alone links with this system's.
    objects = [source for source in sources if source.suffix != ".c"]
    for source in sources:
        if source.suffix == ".c":
            objects.append(directory / f"{source.stem}.ziglang.o")
            words = ["-O2", "-fPIC", "-c", "-o", str(objects[-1]), str(source)]
            run([*compiler, *words], doing, **caches)
    linker = [sys.executable, "-m", ZIGLANG, "ld.lld", f"--version-script={script}"]
    run([*linker, *options, *map(str, objects), *system], doing)


def _system_libraries() -> list[str]:
    """Return the files of the C library that this process runs with; none if that is unknown."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    paths = {line.rpartition(" ")[2] for line in maps.splitlines()}
    return sorted(path for path in paths if Path(path).name.startswith(_C_LIBRARY))


def run(command: Sequence[str], doing: str, **variables: str) -> str:
    """Run a program and return its output; raise BuildError with the last lines if it fails.

    variables: environment variables to set, besides the variables of this process.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **variables},
        )
    except OSError as error:
        raise BuildError(f"{doing} failed: {command[0]} could not be run: {error}.") from error
    if done.returncode:
        text = (done.stderr or done.stdout).strip()
        if "nospaceleft" in text.lower().replace(" ", ""):
            raise BuildError(
                f"{doing} failed: no space is left on a disk. Free some, or name directories on "
                f"another disk: TMPDIR, {env.NATC_CACHE_DIR.name}."
            )
        lines = text.splitlines()
        raise BuildError(
            f"{doing} failed: {Path(command[0]).name} ended with {done.returncode}.\n"
            + "\n".join(lines[-_LAST_LINES:])
        )
    return done.stdout + done.stderr
