"""Writers of libraries and packages that are killed, or at work at once; and who reads meanwhile.

A writer is a process that gets a signal at a step that is counted, not timed: each time that it
opens, renames or removes a file of the directory. An error of the disk is injected at such a step,
or at a write.
"""

from __future__ import annotations

import builtins
import errno
import gc
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.library_files import library_of, make_manifest
from support.written_files import make_schedule, write_schedule_and_log

from natc.errors import LibraryError, NatcError
from natc.package import assemble, hub
from natc.package.pieces import Piece
from natc.runtime import jit
from natc.runtime.load import verify
from natc.runtime.scan import Library, scan
from natc.spec import KernelSpec
from natc.store import temporary, workspace
from natc.store.files import append_line
from natc.store.libraries import libraries_of, write_library
from natc.store.manifest import LibraryTarget, Manifest, load_manifest
from natc.store.records import read_log
from natc.store.schedules import save_schedule
from natc.targets import Target

SPEC = "na2d_k3_d8_float32"
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
MOST_STEPS = 60
LOCK = ".natc.lock"
running: set[int] = set()


def code(number: int) -> bytes:
    """The content of a library; larger than any buffer."""
    return hashlib.sha256(bytes([number])).digest() * 3000


def manifest(number: int) -> Manifest:
    sha256 = hashlib.sha256(code(number)).hexdigest()
    target = LibraryTarget("llvm", ("x86-64-v2",))
    return make_manifest(KernelSpec.parse(SPEC), target, sha256=sha256, natc=f"0.{number}")


def put(directory: Path, number: int) -> Path:
    return write_library(directory, manifest(number), code(number))


def number_of(library: Library) -> int:
    """Which library it is; its file is whole."""
    number = int(library.manifest.natc[-1])
    assert library.path.read_bytes() == code(number) and library.manifest == manifest(number)
    return number


def found_in(directory: Path) -> int:
    (library,) = scan([directory]).libraries
    return number_of(verify(library))


def everything(directory: Path) -> dict[str, bytes]:
    """All files of a directory and below, hidden ones too, but for the lock."""
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and file.name != LOCK
    }


def start(work: Callable[[], Any], directory: Path, step: int = 0, how: int = 0) -> int:
    """Do some work in another process, which gets a signal before its step of that number."""
    process = os.fork()
    if process:
        running.add(process)
        return process
    status = 1
    try:
        gc.disable()
        count = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in STEPS or not str(arguments[0]).startswith(str(directory)):
                return
            count += 1
            if count == step:
                os.kill(os.getpid(), how)

        sys.addaudithook(watch)
        work()
        status = 0
    finally:
        os._exit(status)


def wait(process: int) -> int:
    """Return how a process ended: 0, or the signal that ended it, negative."""
    running.discard(process)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def stops(process: int) -> bool:
    """Wait until a process stops or ends; return whether it stopped."""
    _, status = os.waitpid(process, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        running.discard(process)
    return os.WIFSTOPPED(status)


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    yield
    for process in list(running):
        os.kill(process, signal.SIGKILL)
        wait(process)


def end_at_each_step(work: Callable[[], Any], directory: Path) -> Iterator[int]:
    """Yield after work was killed before its first step, its second, ... until it is done."""
    for step in range(1, MOST_STEPS):
        ended = wait(start(work, directory, step, signal.SIGKILL))
        assert ended in (0, -signal.SIGKILL)
        yield step
        if ended == 0:
            return
    raise AssertionError(f"more than {MOST_STEPS} steps")


# Libraries


def test_a_killed_writer_leaves_the_old_library_or_the_new_one(tmp_path: Path) -> None:
    numbers = []
    put(tmp_path, 0)
    for _ in end_at_each_step(lambda: put(tmp_path, 1), tmp_path):
        numbers.append(found_in(tmp_path))
        # The next writer removes the files of the killed writer.
        put(tmp_path, 2)
        assert found_in(tmp_path) == 2 and len(everything(tmp_path)) == 2
        put(tmp_path, 0)
    assert numbers == sorted(numbers) and numbers.count(0) >= 4 and numbers.count(1) >= 2
    # Without an old library, it leaves the new one or none.
    for _ in end_at_each_step(lambda: put(tmp_path / "new", 1), tmp_path / "new"):
        assert list(map(number_of, scan([tmp_path / "new"]).libraries)) in ([], [1])
        shutil.rmtree(tmp_path / "new", ignore_errors=True)


def test_a_reader_finds_a_whole_library_while_a_writer_stands_still(tmp_path: Path) -> None:
    put(tmp_path, 0)
    (old,) = scan([tmp_path]).libraries
    numbers = []
    for step in range(1, MOST_STEPS):
        writer = start(lambda: put(tmp_path, 1), tmp_path, step, signal.SIGSTOP)
        if not stops(writer):
            break
        # One reader searches now, the other searched before the writer began.
        numbers.append(found_in(tmp_path))
        assert number_of(verify(old)) == 0 or numbers[-1] == 1
        os.kill(writer, signal.SIGCONT)
        assert wait(writer) == 0 and number_of(verify(old)) == 1
        put(tmp_path, 0)
    assert len(numbers) > 5 and set(numbers) == {0, 1}


def test_writers_take_turns(tmp_path: Path) -> None:
    """Whatever the first is about to do when the second comes."""
    put(tmp_path, 0)
    for step in range(1, MOST_STEPS):
        first = start(lambda: put(tmp_path, 1), tmp_path, step, signal.SIGSTOP)
        if not stops(first):
            assert step > 5
            return
        second = start(lambda: put(tmp_path, 2), tmp_path)
        os.kill(first, signal.SIGCONT)
        assert (wait(first), wait(second)) == (0, 0)
        assert found_in(tmp_path) in (1, 2) and len(everything(tmp_path)) == 2
    raise AssertionError(f"more than {MOST_STEPS} steps")


def test_a_library_that_was_changed_or_is_gone_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    (library,) = scan([tmp_path]).libraries
    assert libraries_of(path) == [library.path] == [library_of(path)]
    library.path.write_bytes(code(2))
    with pytest.raises(LibraryError, match=manifest(2).sha256):
        verify(library)
    library.path.unlink()
    with pytest.raises(LibraryError, match="cannot be read: no such file"):
        verify(library)
    path.unlink()
    with pytest.raises(LibraryError, match=f"manifest {path} cannot be read"):
        verify(library)


def test_other_libraries_stay(tmp_path: Path) -> None:
    sibling = tmp_path / f"{SPEC}.llvm-x86-64-v2.v3.so"
    for path in (sibling, tmp_path / f"{SPEC}.cuda.0123456789abcdef.so"):
        path.write_text("")
        put(tmp_path, 1)
        put(tmp_path, 2)
        assert path.exists()
    assert load_manifest(tmp_path / f"{SPEC}.llvm-x86-64-v2.json") == manifest(2)


# Packages


NAMES = assemble.Names("natc-kernels-llvm", "natc_kernels_llvm", "llvm", "1.0", "linux_x86_64")
FORMS = ("wheel", "archive", "hf")


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Piece]:
    # The copies of natc's modules are written as the other files are, and would take minutes.
    monkeypatch.setattr(hub, "_modules", lambda: {})
    return [Piece(library_of(put(tmp_path / "lib", 1)), manifest(1))]


def package(pieces: list[Piece], output: Path) -> None:
    """Write packages of several kinds; two calls write the same bytes."""
    assemble.write(FORMS, pieces, NAMES, output, when=0)


def test_a_killed_packer_leaves_whole_packages(tmp_path: Path, pieces: list[Piece]) -> None:
    output = tmp_path / "dist"
    package(pieces, output)
    (output / ".natc_kernels_of_mine.tmp").write_text("stays")
    whole, more, fewer = everything(output), 0, 0
    for _ in end_at_each_step(lambda: package(pieces, output), output):
        files = everything(output)
        visible = {name: data for name, data in files.items() if "/." not in f"/{name}"}
        assert visible.items() <= whole.items()
        # A variant for the hub is a directory, which is moved away before the new one comes.
        gone = {name.split("/")[1] for name in whole.keys() - files.keys()}
        assert gone <= {"build"}
        more, fewer = more + (len(files) > len(whole)), fewer + bool(gone)
        # The next writer, whatever it writes, removes the pieces.
        assemble.write((), [], NAMES, output, when=0)
        assert everything(output) == whole
    assert more > len(FORMS) and fewer > 0


def test_packers_take_turns(tmp_path: Path, pieces: list[Piece]) -> None:
    output = tmp_path / "dist"
    package(pieces, output)
    whole = everything(output)
    for step in range(1, MOST_STEPS * 2, 5):
        first = start(lambda: package(pieces, output), output, step, signal.SIGSTOP)
        if not stops(first):
            assert step > 15
            return
        second = start(lambda: package(pieces, output), output)
        os.kill(first, signal.SIGCONT)
        assert (wait(first), wait(second)) == (0, 0) and everything(output) == whole
    raise AssertionError(f"more than {MOST_STEPS * 2} steps")


# Errors of the disk


class Faults:
    """Fails a step of this process, that many steps from now: a write, a flush, a rename, ...

    Only files below a directory count. lasting: all later steps fail, too, as on a full disk.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.directory, self.steps_left, self.lasting, self.code = str(directory), 0, False, 0
        self._open = builtins.open
        monkeypatch.setattr(builtins, "open", self.open)
        for name in ("fsync", "replace", "rename", "mkdir", "write"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def set(self, code: int, steps_left: int, *, lasting: bool = False) -> None:
        self.code, self.steps_left, self.lasting = code, steps_left, lasting

    def step(self) -> None:
        self.steps_left -= 1
        if self.steps_left == 0 or (self.lasting and self.steps_left < 0 and self.code):
            raise OSError(self.code, os.strerror(self.code))

    def open(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wax") or not str(file).startswith(self.directory):
            return self._open(file, mode, *arguments, **options)
        self.step()
        return FailingFile(self._open(file, mode, *arguments, **options), self.step)

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **options: Any) -> Any:
            # A path, or the number of an open file.
            if isinstance(arguments[0], int) or str(arguments[0]).startswith(self.directory):
                self.step()
            return call(*arguments, **options)

        return failing


class FailingFile:
    """A file whose writes and flushes are steps that may fail."""

    def __init__(self, file: Any, step: Callable[[], None]) -> None:
        self._file, self._step = file, step

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._step()
        return int(self._file.write(data))

    def flush(self) -> None:
        self._step()
        self._file.flush()


def failed_writers(
    faults: Faults, work: Callable[[], Any], every: int = 1
) -> Iterator[tuple[int, bool]]:
    """Fail each step of work, or every so many; yield (step, whether the work failed).

    A failure is an error of natc in one line that names the directory.
    """
    for number, code in enumerate((errno.ENOSPC, errno.EIO, errno.EINTR)):
        # Three codes fail each step once even if each leaves out two of three.
        for step in range(1 + number % every, 10_000, every):
            lasting = code == errno.ENOSPC
            faults.set(code, step, lasting=lasting)
            try:
                work()
                has_failed = False
            except NatcError as error:
                has_failed = True
                assert faults.directory in str(error) and os.strerror(code).lower() in str(error)
                assert "\n" not in str(error)
            was_last = faults.steps_left > 0
            faults.set(0, 0)
            yield step, has_failed
            if was_last:
                break


def test_a_writer_that_fails_leaves_the_old_library_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, tmp_path)
    put(tmp_path, 0)
    numbers = []
    for _, has_failed in failed_writers(faults, lambda: put(tmp_path, 1)):
        numbers.append((found_in(tmp_path), has_failed))
        assert len(everything(tmp_path)) in (2, 3), "no piece of a file stays"
        put(tmp_path, 0)
    assert len(numbers) > 30 and set(numbers) == {(0, True), (1, False)}


def test_a_packer_that_fails_leaves_whole_packages(
    tmp_path: Path, pieces: list[Piece], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "dist"
    package(pieces, output)
    whole = everything(output)
    faults = Faults(monkeypatch, output)
    steps = []
    for step, _ in failed_writers(faults, lambda: package(pieces, output), every=3):
        # Where no rename works any more, the next writer brings a variant back.
        assemble.write((), [], NAMES, output, when=0)
        assert everything(output) == whole
        steps.append(step)
    assert len(set(steps)) == max(steps) > 50
    new = tmp_path / "new"
    faults = Faults(monkeypatch, new)
    for _, has_failed in failed_writers(faults, lambda: package(pieces, new), every=40):
        assert everything(new).items() <= whole.items()
        assert has_failed or everything(new) == whole
        shutil.rmtree(new, ignore_errors=True)


def test_a_schedule_or_a_log_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path))
    path, log = write_schedule_and_log()
    schedule, line = path.read_bytes(), log.read_text().splitlines()[-1]
    faults = Faults(monkeypatch, tmp_path)
    newer = make_schedule(created="2027-01-02T03:04:05Z")
    for _, has_failed in failed_writers(faults, lambda: save_schedule(newer)):
        assert (path.read_bytes() == schedule) is has_failed
        path.write_bytes(schedule)
    lines = read_log(log)[0]
    for _ in failed_writers(faults, lambda: append_line(log, line)):
        assert read_log(log)[0][: len(lines)] == lines and read_log(log)[1] == []

    def write_half(descriptor: int, data: bytes) -> int:
        return os.pwrite(descriptor, data[: len(data) // 2], os.fstat(descriptor).st_size)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_half)
        with pytest.raises(NatcError, match=f"{log} cannot be appended to: the disk took only"):
            append_line(log, line)
    append_line(log, line)
    records, problems = read_log(log)
    assert len(problems) == 1 and records[-1] == lines[-1] and records[: len(lines)] == lines


# Temporary directories


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's directory for temporary files; all that lies there is old enough to remove."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temporary, "_NEW", 0.0)
    return tmp_path


def next_process() -> None:
    """Remove abandoned directories, as the first temporary directory of a process does."""
    temporary._remove_abandoned.cache_clear()
    temporary._remove_abandoned()


def use_temporary_directory() -> None:
    with temporary.temporary_directory("build") as directory:
        (directory / "part.o").touch()
        os.mkdir(directory / "further")


def test_the_temporary_directory_of_a_killed_process_is_removed_by_the_next(shared: Path) -> None:
    removed = 0
    for _ in end_at_each_step(use_temporary_directory, shared):
        there = list(shared.iterdir())
        next_process()
        # A process that was killed before it had the lock leaves nothing but empty files.
        assert not any(path.stat().st_size for path in shared.rglob("*") if path.is_file())
        removed += bool(there) and not list(shared.iterdir())
        for path in shared.iterdir():
            shutil.rmtree(path)
    assert removed >= 2


def test_other_temporary_directories_stay(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        with temporary.temporary_directory("build"):
            os.kill(os.getpid(), signal.SIGSTOP)

    writer = start(stop, shared)
    assert stops(writer)
    (of_a_writer,) = shared.iterdir()
    next_process()
    assert of_a_writer.is_dir()
    of_a_user = shared / "natc-my-results"
    put(of_a_user, 1)
    os.kill(writer, signal.SIGKILL)
    wait(writer)
    of_a_writer.rename(shared / "kept")
    (shared / "natc-a-link").symlink_to(shared / "kept")
    with temporary.temporary_directory("build") as of_this_process:
        next_process()
        assert of_this_process.is_dir()
        (of_this_process / "part").touch()
    (shared / "kept").rename(of_a_writer)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: of_a_writer.stat().st_uid + 1)
        next_process()
    assert of_a_writer.is_dir()
    next_process()
    assert not of_a_writer.exists() and found_in(of_a_user) == 1


# Builds by calls


def test_a_killed_build_blocks_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path))
    spec, target = KernelSpec.parse(SPEC), Target("llvm", "x86-64-v2")

    def killed(*words: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(jit, "_run", killed)
    first = start(lambda: jit.build(spec, target, "forward", lambda operation: False), tmp_path)
    assert wait(first) == -signal.SIGKILL
    built: list[object] = []
    monkeypatch.setattr(jit, "_run", lambda *words: built.append(words))
    assert jit.build(spec, target, "forward", lambda operation: False)
    assert built == [(spec, target, "forward")]
    # Once another process has built it, there is nothing to do.
    assert jit.build(spec, target, "forward", lambda operation: True) and len(built) == 1


def test_processes_that_call_a_new_kernel_at_once_build_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path))
    spec, target = KernelSpec.parse(SPEC), Target("llvm", "x86-64-v2")
    directory = workspace.jit_dir("forward")

    def build_one(*words: object) -> None:
        append_line(tmp_path / "builds", str(os.getpid()))
        put(directory, 1)

    monkeypatch.setattr(jit, "_run", build_one)

    def call() -> None:
        def is_there(operation: str) -> bool:
            return bool(scan([directory]).libraries)

        assert jit.build(spec, target, "forward", is_there)
        assert found_in(directory) == 1

    processes = [start(call, tmp_path) for _ in range(6)]
    assert [wait(process) for process in processes] == [0] * 6
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
