"""Building a missing kernel when it is first called, where the compiler is installed.

`natc build` runs in a process of its own, so that the process which runs kernels never holds the
compiler. Each family of operations has a directory of its own in the cache: a call that needs
gradients builds what is missing and leaves what is loaded alone.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from natc import env
from natc.errors import CompilerNotFound, NatcError
from natc.host.toolchain import check_compilers
from natc.operations import OPERATIONS, operations_of
from natc.runtime.commands import build_words
from natc.spec import KernelSpec, compiles
from natc.store import workspace
from natc.store.files import locked
from natc.targets import Target

_log = logging.getLogger("natc")

ON, OFF, READONLY = "on", "off", "readonly"
_MODES = (ON, OFF, READONLY)

# What this process could not build, and why; not tried again.
_failures: dict[tuple[KernelSpec, Target], str] = {}


def mode() -> str:
    """Return what NATC_JIT says: `on` (the default), `off` or `readonly`.

    Raises NatcError for another value.
    """
    said = env.NATC_JIT.word() or ON
    if said not in _MODES:
        raise NatcError(f"NATC_JIT is {said!r}; it must be one of {', '.join(_MODES)}.")
    return said


def obstacle(spec: KernelSpec, target: Target, operation: str) -> str | None:
    """Return why an operation is not built when it is called, as a clause, or None where it is."""
    if operation not in operations_of(spec):
        return f"{spec.name} has no {operation}"
    if not compiles(spec.dtype, target.kind):
        return f"there are no {spec.dtype} kernels for {target.kind}"
    return unavailable(target) or _failures.get((spec, target))


def unavailable(target: Target) -> str | None:
    """Return why calls build nothing at all for a target, as a clause, or None where they do."""
    if workspace.only_directory() is not None:
        return f"this package runs the libraries in {workspace.only_directory()} alone"
    if mode() != ON:
        return f"NATC_JIT is {mode()}"
    if importlib.util.find_spec("tvm") is None:
        return "the compiler is not installed (pip install 'natc[compiler]')"
    try:
        check_compilers(target)
    except CompilerNotFound as error:
        return str(error).rstrip(".")
    return None


def build(spec: KernelSpec, target: Target, operation: str, is_there: Callable[[], bool]) -> bool:
    """Build the family of an operation, unless another process does; return whether it is there.

    is_there: called once no other process builds this kernel: whether nothing is left to do.
    Where building fails, that is logged with what the compiler said, and not tried again by this
    process.
    """
    family = OPERATIONS[operation].family
    directory = workspace.jit_dir(family)
    try:
        # Processes that call the same new kernel at once wait for the first one's build.
        with locked(directory, f".{spec.name}.{target.name}.lock"):
            if is_there():
                return True
            _log.warning(
                "natc builds %s (%s) for %s, once; NATC_JIT=off prevents it.",
                *(spec.name, family, target.name),
            )
            words = build_words(spec, [target], (family,))
            only = "--rpb" if spec.rpb else "--no-rpb"
            problem = _run([*words, only, "-o", str(directory)])
    except (NatcError, OSError) as error:
        problem = str(error)
    if problem is None:
        return True
    _log.warning("natc could not build %s for %s: %s", spec.name, target.name, problem)
    _failures[spec, target] = f"building it failed: {problem.splitlines()[-1]}"
    return False


def _run(words: list[str]) -> str | None:
    """Run a natc command in another process; return what went wrong, or None."""
    # This very natc, wherever it was imported from.
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    changes = {env.NATC_JIT.name: OFF, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "natc", *words[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, **changes},
        check=False,
    )
    if done.returncode == 0:
        return None
    return done.stderr.strip() or done.stdout.strip() or f"it ended with {done.returncode}"
