"""The work of a cluster's nodes: builds candidates, and times them on the node's device.

Arguments and results are plain values, and a failure is a result: an exception would reach the
search wrapped in Ray's own. Nothing here imports Ray.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from natc.errors import NatcError
from natc.host import environment
from natc.host.detect import require_runs_here
from natc.store.records import Environment
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune.measure.measurer import BuiltLibrary, Timer, Times
from natc.tune.measure.processes import JobError, Process
from natc.tune.search import builder

# Seconds for one candidate, the first import of the compiler included.
_BUILD_LIMIT = 180.0
# Packages that must have the same version on all nodes that build, and on all that time.
BUILDING, TIMING = ("natc", "tvm", "tvm_ffi"), ("natc",)

Versions = Mapping[str, str | None]


class SentLibrary(NamedTuple):
    """A built candidate: the bytes of its library, their hash, and facts about its code."""

    code: bytes
    sha256: str
    features: dict[str, float]


class Failure(NamedTuple):
    """Why a job has no result.

    unfit: the name of the node if the node is at fault, and not the candidate; else "".
    """

    error: Exception
    unfit: str = ""


def difference(wanted: Versions, names: Sequence[str]) -> str:
    """Return how this node's packages differ from the wanted versions, or ""."""
    own = environment.versions()
    return ", ".join(
        f"{name} {own[name] or 'not installed'} instead of {wanted[name]}"
        for name in names
        if own[name] != wanted[name]
    )


def build(
    versions: Versions,
    spec: str,
    target: str,
    decisions: Mapping[str, int],
    operation: str,
    may_spill: bool,
) -> SentLibrary | Failure:
    """Compile a candidate on this node.

    versions: of the machine that runs the search. spec, target: names.
    """
    wrong = difference(versions, BUILDING)
    if wrong:
        return _unfit(wrong)
    process, directory = _builder()
    path = directory / "candidate.so"
    try:
        built: Any = process.run(
            builder.build,
            (spec, target, dict(decisions), str(path), operation, may_spill),
            _BUILD_LIMIT,
        )
        if built.useless is not None:
            return Failure(JobError(built.useless))
        code = path.read_bytes()
    except (JobError, TimeoutError, ChildProcessError) as error:
        return Failure(error)
    finally:
        path.unlink(missing_ok=True)
    return SentLibrary(code, sha256_of(code), built.features)


@functools.cache
def _builder() -> tuple[Process, Path]:
    """Return this worker's process for builds, which stays warm, and the directory it writes to.

    The process removes the directory when this worker ends.
    """
    directory = Path(tempfile.mkdtemp(prefix="natc-fleet-"))
    return Process(directory), directory


class Bench:
    """Times libraries on this node's device, one job at a time; Ray keeps it as an actor."""

    def __init__(self, spec: str, target: str, shapes: Sequence[Sequence[int]], operation: str):
        """spec, target: names."""
        # Ray sets it to 1. Kernels are timed with as many threads as they have outside of Ray.
        os.environ.pop("OMP_NUM_THREADS", None)
        self._target = Target.parse(target)
        self._stack = ExitStack()
        # A library is code: in a directory that only this user can write.
        self._directory = self._stack.enter_context(temporary_directory("fleet"))
        chosen = [tuple(shape) for shape in shapes]
        self._timer = self._stack.enter_context(Timer(spec, target, chosen, operation))

    def machine(self, versions: Versions, seed: int) -> Environment | Failure:
        """Return this node as a record, or why it cannot time code for the target.

        seed: of the search.
        """
        wrong = difference(versions, TIMING)
        try:
            require_runs_here(self._target, "give its resource to other nodes only")
        except NatcError as error:
            wrong = wrong or str(error)
        return _unfit(wrong) if wrong else environment.collect(seed)

    def start(self) -> None:
        """Load torch, while candidates are built elsewhere."""
        self._timer.start()

    def measure(self, libraries: Sequence[tuple[str, bytes]], turns: int) -> Times | Failure:
        """Time libraries, each a hash and the file's bytes, in alternation."""
        if any(sha256_of(code) != sha256 for sha256, code in libraries):
            return _unfit("a library was damaged on its way to it")
        try:
            return self._timer.measure([self._library(*each) for each in libraries], turns)
        except (JobError, TimeoutError, ChildProcessError) as error:
            return Failure(error)

    def close(self) -> None:
        """End the process that times, and remove the libraries."""
        self._stack.close()

    def _library(self, sha256: str, code: bytes) -> BuiltLibrary:
        path = self._directory / f"{sha256}.so"
        if not path.exists():
            path.write_bytes(code)
        return BuiltLibrary(path, sha256, {})


def _unfit(reason: str) -> Failure:
    return Failure(NatcError(reason), unfit=platform.node())


def sha256_of(code: bytes) -> str:
    """Return the hash that a library is known by."""
    return hashlib.sha256(code).hexdigest()
