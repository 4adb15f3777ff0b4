"""Runs jobs in other processes, which may crash or hang without harm to this one."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from natc.errors import NatcError

Result = TypeVar("Result")

_LONGEST_ERROR = 300

# The search path is handed over, so that a process finds natc wherever its owner found it.
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from natc.tune.measure.processes import serve; serve()"
)


class JobError(Exception):
    """A job raised an exception; holds its text."""


class Process:
    """A process that runs jobs; it starts at the first job, and again after a crash or a hang."""

    def __init__(self, directory: Path) -> None:
        """directory: for temporary files; the process removes it when its owner dies."""
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], limit: float) -> Any:
        """Run `function` in the process and return its result; arguments and result are pickled.

        limit: seconds. Raises JobError if the function raised, TimeoutError, and ChildProcessError
        if the process ended, which says how.
        """
        process = self._running()
        if process.stdin is None or process.stdout is None:
            raise ChildProcessError("it has no pipes")
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(limit, end)
        timer.daemon = True
        timer.start()
        try:
            pickle.dump(pickle.dumps((function, arguments)), process.stdin)
            process.stdin.flush()
            result, error = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.stop()
            if late.is_set():
                raise TimeoutError(f"it took longer than {limit:g} s") from None
            raise ChildProcessError(_how_it_ended(process.wait())) from None
        finally:
            timer.cancel()
        if error is not None:
            raise JobError(error)
        return result

    def stop(self) -> None:
        """End the process and whatever it started; the next job starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            _kill(process)
            process.wait()

    def close(self) -> None:
        """End the process for good; a job that it runs fails."""
        with self._lock:
            self._closed = True
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise ChildProcessError("the search is over")
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM.format(path=sys.path), str(self._directory)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    # A failing job's error is returned; other output would disturb the display.
                    stderr=subprocess.DEVNULL,
                    # A session of its own: Ctrl-C is for its owner, and one signal ends the
                    # process with the compilers that it started.
                    start_new_session=True,
                    env={**os.environ, "TMPDIR": str(self._directory)},
                )
            return self._process


class Processes:
    """Several processes and a queue of jobs; a context manager that leaves nothing running."""

    def __init__(self, count: int, limit: float, directory: Path) -> None:
        """limit: seconds that one job may take. directory: for temporary files."""
        self._limit = limit
        self._all = [Process(directory) for _ in range(count)]
        self._free: queue.SimpleQueue[Process] = queue.SimpleQueue()
        for process in self._all:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(count)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Queue a job; its future raises what `Process.run` raises."""
        return self._threads.submit(self._run, function, arguments)

    def restart(self) -> None:
        """End the processes; each one starts again with its next job."""
        for process in self._all:
            process.stop()

    def close(self) -> None:
        """End the processes at once, and cancel the jobs that wait."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.close()
        self._threads.shutdown(wait=True)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        process = self._free.get()
        try:
            return process.run(function, arguments, self._limit)
        finally:
            self._free.put(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"the process ended with status {status}"
    return f"the process was ended by {signal.Signals(-status).name}"


def why(error: Exception, doing: str) -> str:
    """Return in one line why a candidate failed; re-raise an error that is not its fault."""
    if isinstance(error, TimeoutError):
        return f"took too long {doing}: {error}"
    if isinstance(error, ChildProcessError):
        return f"crashed: {error}"
    if not isinstance(error, JobError):
        raise error
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_ERROR else text[:_LONGEST_ERROR] + " …"


def serve() -> None:
    """Run jobs from standard input until it ends; answers go to standard output.

    The main loop of a process that `Process` starts.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # A job's own output must not mix with the answers.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, jobs), daemon=True).start()
    while True:
        pickle.dump(_answer(jobs.get()), answers)
        answers.flush()


def _answer(job: bytes) -> tuple[Any, str | None]:
    """Return (the result of a job, None), or (None, the text of its exception)."""
    try:
        function, arguments = pickle.loads(job)
        return function(*arguments), None
    # The owner judges the exception.
    except Exception as error:
        text = str(error)
        return None, text if isinstance(error, NatcError) else f"{type(error).__name__}: {text}"


def _receive(requests: BinaryIO, jobs: queue.SimpleQueue[bytes]) -> None:
    """Queue jobs as they arrive; end this process when its owner has ended, even during a job."""
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            jobs.put(pickle.load(requests))
    # A killed owner could not remove its temporary files.
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)
