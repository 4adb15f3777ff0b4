"""The interface of the machines that build and time candidates; a process that times them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

from natc.spec import KernelSpec
from natc.store.records import Environment
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune.events import Event
from natc.tune.measure import worker
from natc.tune.measure.processes import JobError, Process
from natc.tune.measure.workload import Shape

_START_LIMIT, _MEASURE_LIMIT = 300.0, 120.0

Times = list[list[list[float]]]  # [turn][library][shape] seconds of one call


class BuiltLibrary(NamedTuple):
    """A compiled candidate: its file, the hash of the file, and facts about its code by name."""

    path: Path
    sha256: str
    features: dict[str, float]


class PendingLibrary(Protocol):
    """A candidate that is being built."""

    def result(self) -> BuiltLibrary:
        """Wait for the library.

        Raises JobError if the build failed or the candidate is not worth measuring, TimeoutError,
        ChildProcessError, or CancelledError.
        """
        ...

    def cancel(self) -> object:
        """Do not build the candidate, if its build has not begun."""
        ...


class Measurer(Protocol):
    """Builds and times the candidates of one kernel, on this machine or on others."""

    @property
    def builders(self) -> int:
        """How many builds run at once."""
        ...

    @property
    def overlap(self) -> bool:
        """Whether builds leave times alone, so that they may go on while candidates are timed."""
        ...

    def build(self, decisions: Mapping[str, int], *, may_spill: bool = False) -> PendingLibrary:
        """Start building a candidate, unless it was built before.

        may_spill: measure it even if it spills registers.
        """
        ...

    def measure(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        """Check the results of libraries, then time them in alternation, in one process.

        Raises JobError, TimeoutError or ChildProcessError if a library fails.
        """
        ...


class OwnedMeasurer(Measurer, Protocol):
    """A measurer that a search starts and ends; leaving the context ends whatever it started."""

    @property
    def machine(self) -> Environment:
        """The machine that times, as a record."""
        ...

    def __enter__(self) -> OwnedMeasurer: ...

    def __exit__(self, *_: object) -> None: ...


class MakeMeasurer(Protocol):
    """A function that returns the measurer of one search."""

    def __call__(
        self,
        spec: KernelSpec,
        target: Target,
        shapes: Sequence[Shape],
        operation: str,
        seed: int,
        tell: Callable[[Event], None],
    ) -> OwnedMeasurer:
        """seed: of the search, for the record of the machine. tell: called with notes."""
        ...


class Timer:
    """Times libraries in a process of this machine; starts a new one after a crash or a hang.

    A context manager; leaving it ends the process.
    """

    def __init__(self, spec: str, target: str, shapes: Sequence[Shape], operation: str) -> None:
        """spec, target: names."""
        self._spec, self._target, self._operation = spec, target, operation
        self._shapes = [tuple(shape) for shape in shapes]
        self._stack = ExitStack()
        self._process = Process(self._stack.enter_context(temporary_directory("measure")))
        self._thread = self._stack.enter_context(ThreadPoolExecutor(1))
        self._start: Future[bool] | None = None
        self.restarts = 0

    def __enter__(self) -> Timer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.close()
        finally:
            self._stack.close()

    def start(self) -> Future[bool]:
        """Start the process, if it does not run; the future is done when it can measure."""
        if self._start is None or (self._start.done() and self._start.exception() is not None):
            # This job waits for torch, and on a GPU for the driver.
            job = (worker.is_well, (self._target,), _START_LIMIT)
            self._start = self._thread.submit(self._process.run, *job)
        return self._start

    def measure(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        """Time libraries in alternation; raises what `Process.run` raises."""
        self.start().result()
        paths = [str(library.path) for library in libraries]
        arguments = (self._spec, self._target, paths, self._shapes, self._operation, turns)
        try:
            return self._process.run(worker.measure, arguments, _MEASURE_LIMIT)
        except JobError:
            self._keep_if_well()
            raise
        except (TimeoutError, ChildProcessError):
            self._restart()
            raise

    def _keep_if_well(self) -> None:
        try:
            self._process.run(worker.is_well, (self._target,), _MEASURE_LIMIT)
        except (JobError, TimeoutError, ChildProcessError):
            self._restart()

    def _restart(self) -> None:
        self._process.stop()
        self._start = None
        self.restarts += 1
