"""Building a missing kernel when it is first called, if the compiler is installed.

The compiler runs in its own process, so that the process which runs kernels never loads it. It
builds only the operations that the call runs: one forward, or all gradients. The cache has a
directory for each such group of operations: a call that needs gradients builds a library
of the gradients and leaves the library of the forward alone. A forward that keeps the logsumexp
comes before gradients, as a rule: these are built at the same time, by another process.
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
from natc.operations import GRADIENTS, OPERATIONS, called_with, operations_called, operations_of
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

# The processes that build gradients before a call needs them.
_ahead: dict[tuple[KernelSpec, Target], subprocess.Popen[bytes]] = {}


def mode() -> str:
    """Return the value of NATC_JIT: `on` (the default), `off` or `readonly`.

    Raises NatcError for another value.
    """
    return env.NATC_JIT.word() or ON


def obstacle(spec: KernelSpec, target: Target, operation: str) -> str | None:
    """Return why a call does not build an operation, as a clause, or None if it does."""
    if operation not in operations_of(spec, kind=target.kind):
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


def build(
    spec: KernelSpec, target: Target, operation: str, is_there: Callable[[str], bool]
) -> bool:
    """Build an operation unless another process does; return whether it is built.

    is_there: returns whether an operation of the kernel is built already; called for `operation`
        when no other process is building it. A failed build is logged with the compiler's message,
        and this process does not try it again.
    """
    group = called_with(operation)
    what = f"{spec.name} ({group}) for {target.name}"
    if group == _gradients(spec, target) and (spec, target) in _ahead:
        _ahead.pop((spec, target)).wait()
    try:
        # Processes that call the same new kernel at once wait for the first one's build.
        with locked(workspace.jit_dir(group), f".{spec.name}.{target.name}.lock"):
            if is_there(operation):
                return True
            _log.warning(
                "natc builds %s, once; this call waits for it, a few seconds, more on a busy "
                "machine. NATC_JIT=off prevents it.",
                what,
            )
            start = time.monotonic()
            gradients = _gradients(spec, target)
            if OPERATIONS[operation].with_lse and not is_there(
                operations_called(spec, gradients)[0]
            ):
                _ahead[spec, target] = _start(spec, target, gradients, "--if-missing")
            problem = _run(spec, target, group)
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


def _gradients(spec: KernelSpec, target: Target) -> str:
    """Return the group of operations that a call's gradients need, as a rule."""
    every = operations_of(spec, ("backward",), target.kind)
    return GRADIENTS if GRADIENTS in every else "backward"


def _run(spec: KernelSpec, target: Target, group: str) -> str | None:
    """Build operations in another process; return the error message, or None if it succeeds."""
    with _start(spec, target, group, stderr=subprocess.PIPE) as process:
        try:
            # Whatever is built, this process will load with it.
            import tvm_ffi  # noqa: F401

            _, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return None
    message = errors.decode(errors="replace").strip()
    return message or f"it ended with {process.returncode}"


def _start(
    spec: KernelSpec, target: Target, group: str, *options: str, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a process that builds operations; it is `natc.compiler.first_call`."""
    # The same natc as in this process, wherever it was imported from.
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "natc.compiler.first_call"),
            *(spec.name, target.name, group, *options),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": path},
    )
