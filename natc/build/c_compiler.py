"""Finding a C compiler, and running it and its kin with messages a user can act on."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from natc import env, workspace
from natc.elf import PORTABLE_GLIBC
from natc.errors import BuildError, CompilerNotFound, NatcError
from natc.files import make_directory, writable

_SYSTEM = ("cc", "gcc", "clang")
_LAST_LINES = 12
_ZIG = "ziglang"


def host_machine() -> str:
    """Return this machine's kind of processor, `x86_64` or `aarch64` as far as natc knows it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def find_c_compiler(machine: str | None = None, *, portable: bool = False) -> list[str]:
    """Return the command of a C compiler that links for a machine, by default this one.

    NATC_CC if it is set; else cc, gcc or clang here, and `MACHINE-linux-gnu-gcc` for another
    machine; else the one in the ziglang package, which links for manylinux_2_28. portable: that
    one comes before the system's, whose libraries need a system as new as this one. Raises
    CompilerNotFound that says what to install.
    """
    machine = machine or host_machine()
    chosen = env.NATC_CC.get()
    if chosen:
        try:
            command = shlex.split(chosen)
        except ValueError as error:
            raise CompilerNotFound(
                f"NATC_CC is {chosen!r}, which is not a command: {str(error).lower()}."
            ) from error
        if not command or not shutil.which(command[0]):
            raise CompilerNotFound(
                f"NATC_CC is {chosen!r}, and there is no program {' '.join(command[:1])!r}; set "
                "it to a C compiler, or unset it."
            )
        return command
    names = _SYSTEM if machine == host_machine() else (f"{machine}-linux-gnu-gcc",)
    there = [[name] for name in names if shutil.which(name)][:1]
    if importlib.util.find_spec(_ZIG):
        glibc = ".".join(map(str, PORTABLE_GLIBC))
        zig = [sys.executable, "-m", _ZIG, "cc", "-target", f"{machine}-linux-gnu.{glibc}"]
        there.insert(0 if portable else len(there), zig)
    if there:
        return there[0]
    raise CompilerNotFound(
        f"no C compiler for {machine} was found to link the library (looked for NATC_CC, "
        f"{', '.join(names)} and the ziglang package); install one, or: pip install ziglang."
    )


def zig_caches(directory: Path) -> dict[str, str]:
    """Return the variables that tell zig where to keep its files, but for those that are set.

    Objects go below `directory`, or they would be kept for ever. What every build needs goes into
    natc's cache, or below `directory` where that cannot be written: zig's own choice is the
    user's home, and where it cannot write there, it runs on and on.
    """
    kept = workspace.cache_dir() / "zig"
    with contextlib.suppress(NatcError):
        make_directory(kept)
    if not (kept.is_dir() and writable(kept)):
        kept = directory / "zig-global"
    places = {"ZIG_LOCAL_CACHE_DIR": directory / "zig", "ZIG_GLOBAL_CACHE_DIR": kept}
    return {name: str(path) for name, path in places.items() if not os.environ.get(name)}


def find_nvcc() -> str:
    """Return the path of the CUDA compiler.

    From PATH, or from CUDA_HOME or CUDA_PATH. Raises CompilerNotFound that says what to install.
    """
    found = shutil.which("nvcc")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if not found and os.environ.get(variable):
            found = shutil.which("nvcc", path=str(Path(os.environ[variable]) / "bin"))
    if not found and Path("/usr/local/cuda/bin/nvcc").exists():
        found = "/usr/local/cuda/bin/nvcc"
    if not found:
        raise CompilerNotFound(
            "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda; install the CUDA "
            "toolkit to build for cuda (no GPU is needed)."
        )
    return found


def cuda_version() -> tuple[int, ...]:
    """Return the version of the CUDA toolkit that compiles, such as (13, 0), or () if unknown.

    Raises CompilerNotFound.
    """
    done = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    return tuple(map(int, found.groups())) if found else ()


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
    machine: the processor it is for, by default this one. portable: for older systems, too, where
    `find_c_compiler` finds a compiler that can. Raises CompilerNotFound or BuildError.
    """
    # Pointers that another library might overwrite by name stay invisible to it.
    script = directory / "exported"
    names = " ".join(f"{name};" for name in exported)
    # As a pattern, because lld refuses a name that not every library defines.
    script.write_text(f"{{ global: {names} __tvm_ffi__library_ctx*; local: *; }};\n")
    run(
        [
            *find_c_compiler(machine, portable=portable),
            # Stripped: debug information would carry paths of this machine.
            *("-O2", "-fPIC", "-shared", "-s", "-o", str(output)),
            *(str(source) for source in sources),
            *(f"-Wl,--version-script={script}", "-lpthread", "-ldl", "-lm"),
        ],
        "linking the library",
        **zig_caches(directory),
    )


def run(command: Sequence[str], doing: str, **variables: str) -> str:
    """Run a program and return what it said; raise BuildError with the end of it when it fails.

    variables: of its environment, besides those of this process.
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
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BuildError(
            f"{doing} failed: {Path(command[0]).name} ended with {done.returncode}.\n"
            + "\n".join(said[-_LAST_LINES:])
        )
    return done.stdout + done.stderr
