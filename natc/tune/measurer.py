"""Building and measuring candidates in processes that may fail."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from tvm.support.popen_pool import PopenPoolExecutor

from natc import environment
from natc.spec import KernelSpec
from natc.targets import Target
from natc.tune import worker
from natc.tune.workload import Shape

# Seconds for one candidate, the first import of PyTorch and the compiler included.
_BUILD_LIMIT, _MEASURE_LIMIT = 180, 120
_MOST_BUILDERS = 12
_LONGEST_ERROR = 300


class Outcome(NamedTuple):
    """What became of a candidate: seconds for each shape, or why there are none."""

    seconds: list[float] | None
    error: str | None


class Measurer:
    """Measures candidates of one kernel: builds several at once, then times them one by one.

    A context manager; leaving it ends the processes and removes the candidates' libraries.
    """

    def __init__(self, spec: KernelSpec, target: Target, shapes: Sequence[Shape]) -> None:
        self._spec, self._target, self._shapes = spec, target, list(shapes)
        self.builders = max(1, min(_MOST_BUILDERS, environment.cores()))
        self._directory = Path(tempfile.mkdtemp(prefix="natc-tune-"))
        self._made = 0
        # What a failing candidate prints is in its error; the rest would tear the progress bar.
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._build_pool = PopenPoolExecutor(self.builders, _BUILD_LIMIT, **quiet)
        self._measure_pool = PopenPoolExecutor(1, _MEASURE_LIMIT, **quiet)

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._build_pool, self._measure_pool):
            pool.shutdown(wait=False)
        shutil.rmtree(self._directory, ignore_errors=True)

    def build(self, decisions: Mapping[str, int]) -> tuple[Path, Future[None]]:
        """Start building a candidate; return where its library will be, and the promise of it."""
        self._made += 1
        path = self._directory / f"candidate{self._made}.so"
        arguments = (self._spec.name, self._target.name, dict(decisions), str(path))
        return path, self._build_pool.submit(worker.build, *arguments)

    def measure(self, path: Path, building: Future[None]) -> Outcome:
        """Wait for a candidate's library and measure it."""
        try:
            building.result()
            names = (self._spec.name, self._target.name)
            job = self._measure_pool.submit(worker.measure, *names, str(path), self._shapes)
            return Outcome(job.result(), None)
        except TimeoutError:
            return Outcome(None, "took too long to build or to run")
        except ChildProcessError as error:
            return Outcome(None, f"crashed: {_short(error)}")
        # Whatever a candidate raises is a property of the candidate.
        except Exception as error:
            return Outcome(None, _short(error))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_ERROR else text[:_LONGEST_ERROR] + " …"
