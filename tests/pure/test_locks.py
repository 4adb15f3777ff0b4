"""Locks of directories: who waits says so, may give up, and may be stopped."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.held_lock import Holder

from natc.errors import NatcError
from natc.store import files
from natc.store.files import Locked, append_line, locked

# Where waiting goes wrong, it has no end.
pytestmark = pytest.mark.timeout(120)

LOCK = ".natc.lock"


class Warnings(list[str]):
    """The warnings of `natc.store.files`; `then` is called at each."""

    then: Callable[[], object] = staticmethod(lambda: None)

    def warning(self, text: str, *arguments: object) -> None:
        self.append(text % arguments)
        self.then()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> Warnings:
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    monkeypatch.setattr(files, "_log", Warnings())
    return files._log  # type: ignore[return-value]


def test_who_waits_names_the_lock_once_and_goes_on(tmp_path: Path, warnings: Warnings) -> None:
    holder = Holder(tmp_path / LOCK)
    warnings.then = holder.let_go
    with locked(tmp_path):
        assert warnings == [
            f"natc waits: another thread of this process holds the lock {holder.path}"
        ]
        with pytest.raises(BlockingIOError):
            holder.take_again()
    holder.take_again()
    assert len(warnings) == 1


def test_who_waits_to_append_a_line_names_the_holder(tmp_path: Path, warnings: Warnings) -> None:
    holder = Holder(tmp_path / "log")
    warnings.then = holder.let_go
    append_line(holder.path, "line")
    assert len(warnings) == 1 and f"holds the lock {holder.path}" in warnings[0]
    assert holder.path.read_text() == "line\n"


def test_no_message_without_waiting(tmp_path: Path, warnings: Warnings) -> None:
    with locked(tmp_path / "new"), locked(tmp_path / "new", ".another"):
        assert {path.name for path in (tmp_path / "new").iterdir()} == {LOCK, ".another"}
    with locked(tmp_path / "new", wait=False):
        pass
    assert warnings == []


def test_who_does_not_want_to_wait_gives_up(tmp_path: Path, warnings: Warnings) -> None:
    holder = Holder(tmp_path / ".another")
    with pytest.raises(Locked, match=r" holds the lock .*/\.another$"):
        locked(tmp_path, ".another", wait=False).__enter__()
    assert warnings == []
    holder.let_go()
    with locked(tmp_path, ".another", wait=False):
        pass


def test_who_waits_may_be_stopped(tmp_path: Path, warnings: Warnings) -> None:
    holder = Holder(tmp_path / LOCK)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.then = lambda: os.kill(os.getpid(), signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            locked(tmp_path).__enter__()
    finally:
        signal.signal(signal.SIGINT, before)
    holder.let_go()
    # Nothing of the attempt is left: others can have it, and so can this process.
    holder.take_again()
    holder.let_go()
    with locked(tmp_path, wait=False):
        pass
    assert len(warnings) == 1


@pytest.fixture
def holding_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    program = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print(flush=True); time.sleep(100)"
    )
    command = [sys.executable, "-S", "-c", program, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        yield process
        process.kill()


def test_the_holder_and_the_way_to_go_on_are_named(
    tmp_path: Path, warnings: Warnings, holding_process: subprocess.Popen[str]
) -> None:
    with pytest.raises(Locked) as caught:
        locked(tmp_path, wait=False).__enter__()
    message = str(caught.value)
    assert message.startswith(
        f"process {holding_process.pid} ({sys.executable} -S -c 'import fcntl"
    )
    assert message.endswith(
        f") holds the lock {tmp_path / LOCK}; if it hangs, end it: kill {holding_process.pid}"
    )
    holding_process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holding_process.pid, os.WSTOPPED)
    with pytest.raises(
        Locked, match=f"it is stopped: continue it with kill -CONT {holding_process.pid}"
    ):
        locked(tmp_path, wait=False).__enter__()
    warnings.then = holding_process.kill
    with locked(tmp_path):
        assert len(warnings) == 1 and f"kill -9 {holding_process.pid}" in warnings[0]


@pytest.mark.parametrize(("seconds", "messages"), [(0.0, 0), (0.04, 0), (0.1, 1)])
def test_who_waits_gives_up_after_the_time_it_may_wait(
    tmp_path: Path,
    warnings: Warnings,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    messages: int,
) -> None:
    monkeypatch.setattr(files, "longest_wait", math.inf)
    files.wait_at_most(seconds)
    holder = Holder(tmp_path / LOCK)
    with pytest.raises(Locked, match=str(holder.path)):
        locked(tmp_path).__enter__()
    assert len(warnings) == messages
    files.wait_at_most(None)
    warnings.then = holder.let_go
    with locked(tmp_path):
        pass


def test_a_lock_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(NatcError, match=f"file {tmp_path / LOCK} cannot be locked: "):
        locked(tmp_path).__enter__()
