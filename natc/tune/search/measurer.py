"""Builds and times candidates on this machine, in processes that may fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from natc.host import detect, environment
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.manifest import file_sha256
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune.history import Key, key_of
from natc.tune.measure.measurer import BuiltLibrary, Timer, Times
from natc.tune.measure.processes import JobError, Processes
from natc.tune.measure.workload import Shape
from natc.tune.search import builder
from natc.tune.search.builder import BuiltCandidate

_BUILD_LIMIT = 600
_MOST_BUILDERS = 12


class Build(NamedTuple):
    """A library that is being built: its path, and a future that is done when it is written."""

    path: Path
    done: Future[BuiltCandidate]

    def result(self) -> BuiltLibrary:
        """Wait for the library; see `PendingLibrary`."""
        useless, features = self.done.result()
        if useless is not None:
            raise JobError(useless)
        return BuiltLibrary(self.path, file_sha256(self.path), features)

    def cancel(self) -> bool:
        """Do not build the candidate, if its build has not begun."""
        return self.done.cancel()


class Builders:
    """Builds candidates, several at once; a context manager that leaves nothing running."""

    def __init__(
        self,
        spec: KernelSpec,
        target: Target,
        operation: str,
        directory: Path | None = None,
        *,
        portable: bool = False,
    ) -> None:
        """directory: for the libraries, by default a temporary one. portable: see `builder`."""
        self._names, self._operation = (spec.name, target.name), operation
        self._portable = portable
        self.count = max(1, min(_MOST_BUILDERS, detect.cores()))
        self._stack = ExitStack()
        scratch = self._stack.enter_context(temporary_directory("tune"))
        self._directory = directory or scratch
        self._builds: dict[Key, Build] = {}
        self._files = 0
        self._processes = Processes(self.count, _BUILD_LIMIT, scratch)

    def __enter__(self) -> Builders:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._processes.close()
        finally:
            self._stack.close()

    def build(self, decisions: Mapping[str, int], *, may_spill: bool = False) -> Build:
        """Start building a candidate, unless it was built before."""
        key = key_of(decisions)
        build = self._builds.get(key)
        if build is None or build.done.cancelled():
            path = self._directory / f"candidate_{self._files:04}.so"
            self._files += 1
            arguments = (*self._names, dict(decisions), str(path), self._operation)
            job = self._processes.submit(builder.build, *arguments, may_spill, self._portable)
            build = self._builds[key] = Build(path, job)
        return build


class LocalMeasurer:
    """Builds and times candidates of one kernel on this machine; see `Measurer`.

    A context manager; leaving it ends the processes and removes the libraries.
    """

    def __init__(
        self,
        spec: KernelSpec,
        target: Target,
        shapes: Sequence[Shape],
        operation: str = FORWARD,
        seed: int = 0,
    ) -> None:
        """seed: of the search, for the record of this machine."""
        self.machine = environment.collect(seed)
        self._builders = Builders(spec, target, operation)
        self._timer = Timer(spec.name, target.name, shapes, operation)
        # torch loads while the first candidates are chosen and built.
        self._timer.start()
        self.builders = self._builders.count
        # A CPU that compiles at the same time gives wrong times.
        self.overlap = target.kind != "llvm"

    def __enter__(self) -> LocalMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._builders, self._timer:
            pass

    def build(self, decisions: Mapping[str, int], *, may_spill: bool = False) -> Build:
        """Start building a candidate, unless it was built before."""
        return self._builders.build(decisions, may_spill=may_spill)

    def measure(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        """Time libraries in alternation; see `Measurer.measure`."""
        return self._timer.measure(libraries, turns)
