"""Builds and measures candidates in processes that may fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from natc.host import detect
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune.history import Key, key_of
from natc.tune.measure import worker
from natc.tune.measure.processes import Processes, why
from natc.tune.measure.workload import Shape
from natc.tune.search import builder
from natc.tune.search.builder import BuiltCandidate

# Seconds for one candidate, the first import of PyTorch and the compiler included.
_BUILD_LIMIT, _MEASURE_LIMIT = 180, 120
_MOST_BUILDERS = 12


class CandidateResult(NamedTuple):
    """The result of measuring a candidate: seconds for each shape, or an error.

    features: numbers about its machine code; None if it was not built.
    """

    seconds: list[float] | None
    error: str | None
    features: dict[str, float] | None = None


class PendingLibrary(NamedTuple):
    """A candidate's library: its path, and a future that is done when the file is written."""

    path: Path
    done: Future[BuiltCandidate]


class Measurer:
    """Measures candidates of one kernel: builds several at once, then times them one by one.

    A context manager; leaving it ends the processes and removes the candidates' libraries.
    """

    def __init__(
        self,
        spec: KernelSpec,
        target: Target,
        shapes: Sequence[Shape],
        operation: str = FORWARD,
    ) -> None:
        self._operation = operation
        self._spec, self._target, self._shapes = spec, target, list(shapes)
        self.builders = max(1, min(_MOST_BUILDERS, detect.cores()))
        self._stack = ExitStack()
        self._directory = self._stack.enter_context(temporary_directory("tune"))
        self._made: dict[Key, PendingLibrary] = {}
        self._files = 0
        self._build = Processes(self.builders, _BUILD_LIMIT, self._directory)
        self._measure = Processes(1, _MEASURE_LIMIT, self._directory)

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._build.close()
            self._measure.close()
        finally:
            self._stack.close()

    def build(self, decisions: Mapping[str, int]) -> PendingLibrary:
        """Start building a candidate, unless it was built before."""
        library = self._made.get(key_of(decisions))
        if library is None or library.done.cancelled():
            self._files += 1
            path = self._directory / f"candidate{self._files}.so"
            arguments = (self._spec.name, self._target.name, dict(decisions), str(path))
            library = PendingLibrary(
                path, self._build.submit(builder.build, *arguments, self._operation)
            )
            self._made[key_of(decisions)] = library
        return library

    def measure(self, built: PendingLibrary) -> CandidateResult:
        """Wait for a candidate's library and measure it."""
        if self._target.kind == "llvm":
            # A CPU that compiles at the same time gives wrong times.
            wait([library.done for library in self._made.values()])
        try:
            features = built.done.result().features
        except CancelledError:
            return CandidateResult(None, "was not built")
        except Exception as error:
            return CandidateResult(None, why(error, "to build"))
        names = (self._spec.name, self._target.name)
        arguments = (*names, str(built.path), self._shapes, self._operation)
        job = self._measure.submit(worker.measure, *arguments)
        try:
            return CandidateResult(job.result(), None, features)
        except Exception as error:
            if self._target.kind == "cuda":
                # After a bad memory access, a process cannot use the GPU any more.
                self._measure.restart()
            return CandidateResult(None, why(error, "to run"), features)
