"""Building a missing kernel when it is first called, if the compiler is installed.

`natc build` runs in its own process, so that the process which runs kernels never loads the
compiler. The cache has a directory for each family of operations: a call that needs gradients
builds a library of the gradients and leaves the library of the forward alone.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from natc import env
from natc.errors import CompilerNotFound, NatcError
from natc.host.toolchain import check_compilers
from natc.operations import OPERATIONS, operations_of
from natc.runtime.commands import build_words
from natc.runtime.trust import noexec
from natc.spec import KernelSpec, compiles
from natc.store import workspace
from natc.store.files import locked
from natc.targets import Target

_log = logging.getLogger("natc")

ON, OFF, READONLY = "on", "off", "readonly"

# A build that takes longer than this many seconds says at its end how long it took.
_LONG = 5.0

# The kernels that this process could not build, each with the reason; it does not try again.
_failures: dict[tuple[KernelSpec, Target], str] = {}


def mode() -> str:
    """Return the value of NATC_JIT: `on` (the default), `off` or `readonly`.

    Raises NatcError for another value.
    """
    return env.NATC_JIT.word() or ON


def obstacle(spec: KernelSpec, target: Target, operation: str) -> str | None:
    """Return why a call does not build an operation, as a clause, or None if it does."""
    if operation not in operations_of(spec):
        return f"{spec.name} has no {operation}"
    if not compiles(spec.dtype, target.kind):
        return f"there are no {spec.dtype} kernels for {target.kind}"
    return unavailable(target) or _failures.get((spec, target))


def unavailable(target: Target) -> str | None:
    """Return why calls build nothing for a target, as a clause, or None if they do."""
    if workspace.only_directory() is not None:
        return f"this package runs the libraries in {workspace.only_directory()} alone"
    if mode() != ON:
        return f"NATC_JIT is {mode()}"
    if env.NATC_TRUSTED_KEYS.get():
        return "NATC_TRUSTED_KEYS is set, and nobody would have signed what it builds"
    if importlib.util.find_spec("tvm") is None:
        return "the compiler is not installed (pip install 'natc[compiler]')"
    try:
        check_compilers(target)
    except CompilerNotFound as error:
        return str(error).rstrip(".")
    return noexec(workspace.cache_dir())


def build(spec: KernelSpec, target: Target, operation: str, is_there: Callable[[], bool]) -> bool:
    """Build the family of an operation unless another process does; return whether it is built.

    is_there: returns whether the kernel is built already; called when no other process is
        building it. A failed build is logged with the compiler's message, and this process does
        not try it again.
    """
    family = OPERATIONS[operation].family
    what = f"{spec.name} ({family}) for {target.name}"
    directory = workspace.jit_dir(family)
    try:
        # Processes that call the same new kernel at once wait for the first one's build.
        with locked(directory, f".{spec.name}.{target.name}.lock"):
            if is_there():
                return True
            _log.warning(
                "natc builds %s, once; this call waits for it, some seconds, on a busy machine "
                "half a minute or more. NATC_JIT=off prevents it.",
                what,
            )
            start = time.monotonic()
            words = build_words(spec, [target], (family,))
            only = "--rpb" if spec.rpb else "--no-rpb"
            problem = _run([*words, only, "-o", str(directory)])
    except (NatcError, OSError) as error:
        problem = str(error)
    if problem is None:
        seconds = time.monotonic() - start
        if seconds > _LONG:
            _log.warning("natc built %s in %.0f seconds.", what, seconds)
        return True
    _log.warning("natc could not build %s: %s", what, problem)
    _failures[spec, target] = f"building it failed: {problem.splitlines()[-1]}"
    return False


def _run(words: list[str]) -> str | None:
    """Run a natc command in another process; return the error message, or None if it succeeds."""
    # The same natc as in this process, wherever it was imported from.
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
