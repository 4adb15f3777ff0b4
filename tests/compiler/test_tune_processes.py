"""Processes for jobs: crashes, hangs and errors are reported, and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from natc.errors import BuildError
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.tune.measure.processes import JobError, Processes
from natc.tune.search import builder


def add(a: int, b: int) -> int:
    print("this must not come among the answers")
    os.write(1, b"nor this")
    return a + b


def fail(kind: type[Exception], text: str) -> None:
    raise kind(text)


def unpicklable() -> Any:
    return lambda: None


def crash(number: int) -> None:
    os.kill(os.getpid(), number)


def leave(status: int) -> None:
    os._exit(status)


def sleep(note: str, seconds: float = 60) -> int:
    """Note the ids of this process and of a process that it starts, then hang."""
    child = subprocess.Popen(["sleep", str(seconds)])
    Path(note).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(seconds)
    return 0


def where() -> tuple[int, str | None, bool]:
    return os.getpid(), os.environ.get("TMPDIR"), os.getsid(0) == os.getpid()


def loaded(*names: str) -> list[bool]:
    return [name in sys.modules for name in names]


def eventually(happened: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    return happened()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def noted(note: Path) -> list[int]:
    """Return the processes that a job noted, once it has."""
    assert eventually(lambda: note.exists() and " " in note.read_text())
    return [int(pid) for pid in note.read_text().split()]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    opened = []

    def processes(count: int = 1, limit: float = 60) -> Processes:
        opened.append(Processes(count, limit, tmp_path))
        return opened[-1]

    yield processes
    for pool in opened:
        pool.close()


def test_jobs_run_elsewhere_and_return_their_results(
    make: Callable[..., Processes], tmp_path: Path
) -> None:
    pool = make()
    assert [pool.submit(add, n, 1).result() for n in range(3)] == [1, 2, 3]
    pid, temporary, own_session = pool.submit(where).result()
    assert pid != os.getpid() and pid == pool.submit(where).result()[0]
    assert temporary == str(tmp_path)
    # Ctrl-C in a terminal goes to the owner's session alone.
    assert own_session


def test_candidates_are_built_in_one_process_which_does_not_load_torch(
    make: Callable[..., Processes], tmp_path: Path
) -> None:
    pool = make()
    pid = pool.submit(where).result()[0]
    spec, target = KernelSpec.make(3, head_dim=4), detect_host_cpu()
    for number in range(2):
        output = tmp_path / f"{number}.so"
        pool.submit(builder.build, spec.name, target.name, {}, str(output)).result()
        assert output.stat().st_size
    assert pool.submit(where).result()[0] == pid
    assert pool.submit(loaded, "tvm", "torch").result() == [True, False]


def test_an_error_is_reported_and_the_process_lives_on(make: Callable[..., Processes]) -> None:
    pool = make()
    pid = pool.submit(where).result()[0]
    with pytest.raises(JobError, match="^ValueError: no such thing$"):
        pool.submit(fail, ValueError, "no such thing").result()
    # What natc says itself is a sentence already.
    with pytest.raises(JobError, match="^cc is missing$"):
        pool.submit(fail, BuildError, "cc is missing").result()
    assert pool.submit(where).result()[0] == pid


def test_a_crash_names_the_signal_and_the_next_job_runs(make: Callable[..., Processes]) -> None:
    pool = make()
    with pytest.raises(ChildProcessError, match="ended by SIGSEGV"):
        pool.submit(crash, signal.SIGSEGV).result()
    with pytest.raises(ChildProcessError, match="ended with status 3"):
        pool.submit(leave, 3).result()
    assert pool.submit(add, 1, 2).result() == 3


def test_a_job_that_hangs_is_ended_with_what_it_started(
    make: Callable[..., Processes], tmp_path: Path
) -> None:
    pool = make(limit=3)
    with pytest.raises(TimeoutError, match="longer than 3 s"):
        pool.submit(sleep, str(tmp_path / "note")).result()
    for pid in noted(tmp_path / "note"):
        assert eventually(lambda pid=pid: not alive(pid))
    assert pool.submit(add, 1, 2).result() == 3


def test_a_result_that_cannot_be_sent_fails_alone(make: Callable[..., Processes]) -> None:
    pool = make()
    with pytest.raises((JobError, ChildProcessError)):
        pool.submit(unpicklable).result()
    assert pool.submit(add, 1, 2).result() == 3


def test_closing_does_not_wait_for_jobs(make: Callable[..., Processes], tmp_path: Path) -> None:
    pool = make(2)
    running = [pool.submit(sleep, str(tmp_path / f"note{n}")) for n in range(2)]
    waiting = [pool.submit(add, n, 1) for n in range(5)]
    pids = noted(tmp_path / "note0") + noted(tmp_path / "note1")
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 30
    assert all(isinstance(job.exception(), ChildProcessError) for job in running)
    assert all(job.cancelled() for job in waiting)
    for pid in pids:
        assert eventually(lambda pid=pid: not alive(pid))


def test_a_killed_owner_leaves_neither_processes_nor_files(tmp_path: Path) -> None:
    scratch, note = tmp_path / "scratch", tmp_path / "note"
    scratch.mkdir()
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from natc.tune.measure.processes import Processes\n"
        "from test_tune_processes import sleep\n"
        f"Processes(1, 60, Path({str(scratch)!r})).submit(sleep, {str(note)!r}).result()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program])
    try:
        pids = noted(note)
        assert all(alive(pid) for pid in pids) and scratch.exists()
    finally:
        owner.kill()
        owner.wait()
    for pid in pids:
        assert eventually(lambda pid=pid: not alive(pid))
    assert not scratch.exists()
