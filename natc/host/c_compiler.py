"""Linking libraries, and running compilers with messages that a user can act on."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from natc import env
from natc.errors import BuildError, NatcError
from natc.host.toolchain import find_c_compiler, find_nvcc
from natc.store import workspace
from natc.store.files import make_directory, writable

_LAST_LINES = 12


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
    run(
        [
            *find_c_compiler(machine, portable=portable),
            # Stripped, because debug information would hold paths of this machine.
            *("-O2", "-fPIC", "-shared", "-s", "-o", str(output)),
            *(str(source) for source in sources),
            *(f"-Wl,--version-script={script}", "-lpthread", "-ldl", "-lm"),
        ],
        "linking the library",
        **zig_caches(directory),
    )


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
