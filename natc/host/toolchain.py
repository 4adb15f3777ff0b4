"""Finding the programs that a build needs besides the compiler extra: a C compiler and nvcc."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

from natc import env
from natc.errors import CompilerNotFound
from natc.host.detect import host_machine
from natc.store.elf import PORTABLE_GLIBC
from natc.targets import Target

_SYSTEM = ("cc", "gcc", "clang")
ZIGLANG = "ziglang"


def find_c_compiler(machine: str | None = None, *, portable: bool = False) -> list[str]:
    """Return the command of a C compiler that links for a machine, by default this one.

    NATC_CC if it is set; else cc, gcc or clang for this machine, `MACHINE-linux-gnu-gcc` for
    another; else ziglang's compiler, which links for manylinux_2_28. portable: ziglang's compiler
    comes before the system's, which links libraries for systems as new as this one. Raises
    CompilerNotFound, which says what to install.
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
    compilers = [[name] for name in names if shutil.which(name)][:1]
    if importlib.util.find_spec(ZIGLANG):
        glibc = ".".join(map(str, PORTABLE_GLIBC))
        zig = [sys.executable, "-m", ZIGLANG, "cc", "-target", f"{machine}-linux-gnu.{glibc}"]
        compilers.insert(0 if portable else len(compilers), zig)
    if compilers:
        return compilers[0]
    raise CompilerNotFound(
        f"no C compiler for {machine} was found to link the library (looked for NATC_CC, "
        f"{', '.join(names)} and the ziglang package); install one, or: pip install ziglang."
    )


def is_ziglang(compiler: list[str]) -> bool:
    """Return whether the command of a C compiler is `python -m ziglang cc`."""
    return ZIGLANG in compiler


def find_nvcc() -> str:
    """Return the path of the CUDA compiler.

    From PATH, or from CUDA_HOME or CUDA_PATH. Raises CompilerNotFound, which says what to install.
    """
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = os.pathsep.join(str(Path(home) / "bin") for home in homes if home)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=places)
    if not nvcc:
        raise CompilerNotFound(
            "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda; install the CUDA "
            "toolkit to build for cuda (no GPU is needed)."
        )
    return nvcc


def check_compilers(target: Target) -> None:
    """Raise CompilerNotFound, which says what to install, if a build for a target lacks one."""
    find_c_compiler(machine_of(target), portable=True)
    if target.kind == "cuda":
        find_nvcc()


def machine_of(target: Target) -> str:
    """Return the kind of processor that the host code of libraries for a target runs on."""
    return target.properties.processor or host_machine()
