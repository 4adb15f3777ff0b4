"""A library and its manifest, while one process replaces them and others read, write, or kill it.

Writers are processes that stop or are killed at a step that is counted, not timed: each time that
they open, rename or remove a file of the directory.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from natc.errors import LibraryError, NatcError
from natc.package import archives, assemble, hub
from natc.package.contents import constant
from natc.package.pieces import Piece
from natc.runtime import jit
from natc.spec import KernelSpec
from natc.store.files import write_atomically
from natc.store.manifest import LibraryTarget, Manifest, load_manifest
from natc.store.replace import vouching, write_library
from natc.targets import Target

SPEC = "na2d_k3_d8_float32"
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
MOST = 60  # steps of a writer; it has fewer
running: set[int] = set()


def code(number: int) -> bytes:
    """The content of a library; larger than any buffer."""
    return hashlib.sha256(bytes([number])).digest() * 3000


def manifest(number: int) -> Manifest:
    return Manifest(
        spec=SPEC,
        target=LibraryTarget("llvm", ("x86-64-v2",)),
        library=f"{SPEC}.llvm-x86-64-v2.so",
        sha256=hashlib.sha256(code(number)).hexdigest(),
        entries={"forward": {"llvm": "forward"}},
        natc=f"0.{number}",
    )


def put(path: Path, number: int) -> None:
    write_library(path, code(number), manifest(number))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lib" / f"{SPEC}.llvm-x86-64-v2.json"


def visible(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.glob("[!.]*"))


def hidden(directory: Path) -> list[str]:
    """The files of writers; the lock is to stay."""
    return [file.name for file in directory.glob(".*") if file.name != ".natc.lock"]


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
    for step in range(1, MOST):
        ended = wait(start(work, directory, step, signal.SIGKILL))
        assert ended in (0, -signal.SIGKILL)
        yield step
        if ended == 0:
            return
    raise AssertionError(f"more than {MOST} steps")


def number_of(path: Path) -> int:
    """Which library lies there, whole and vouched for."""
    found, digest = vouching(path)
    assert found.sha256 == digest
    for number in range(4):
        if path.with_name(found.library).read_bytes() == code(number):
            assert found == manifest(number)
            return number
    raise AssertionError("no whole library")


def test_a_writer_that_is_killed_leaves_the_old_library_or_the_new_one(path: Path) -> None:
    put(path, 0)
    seen = []
    for _ in end_at_each_step(lambda: put(path, 1), path.parent):
        seen.append(number_of(path))
        # What the killed one left does not hinder the next, and does not stay.
        put(path, 2)
        assert (number_of(path), hidden(path.parent)) == (2, [])
        put(path, 0)
    assert len(visible(path.parent)) == 2
    assert set(seen) == {0, 1} and seen == sorted(seen) and seen.count(0) >= 4, seen
    # The last was not killed; the one before it was, after the library and before the manifest.
    assert seen[-2:] == [1, 1]


def test_a_killed_first_writer_leaves_a_library_or_none(path: Path) -> None:
    for _ in end_at_each_step(lambda: put(path, 1), path.parent):
        if path.exists():
            assert number_of(path) == 1
        for file in path.parent.glob("*"):
            file.unlink()


def test_a_reader_finds_a_whole_library_while_a_writer_stands_still(path: Path) -> None:
    put(path, 0)
    steps, seen = 0, []
    for step in range(1, MOST):
        writer = start(lambda: put(path, 1), path.parent, step, signal.SIGSTOP)
        if not stops(writer):
            break
        steps += 1
        seen.append(number_of(path))
        os.kill(writer, signal.SIGCONT)
        assert wait(writer) == 0 and number_of(path) == 1
        put(path, 0)
    assert steps > 5 and set(seen) == {0, 1}


def test_writers_take_turns(path: Path) -> None:
    """Whatever the first is about to do when the second comes."""
    put(path, 0)
    for step in range(1, MOST):
        first = start(lambda: put(path, 1), path.parent, step, signal.SIGSTOP)
        if not stops(first):
            assert step > 5
            return
        second = start(lambda: put(path, 2), path.parent)
        os.kill(first, signal.SIGCONT)
        assert (wait(first), wait(second)) == (0, 0)
        found = load_manifest(path)
        assert found in (manifest(1), manifest(2))
        assert path.with_name(found.library).read_bytes() == code(int(found.natc[-1]))
        assert hidden(path.parent) == []
    raise AssertionError(f"more than {MOST} steps")


def test_many_writers_at_once_leave_one_whole_library(path: Path) -> None:
    writers = [start(lambda n=n: [put(path, n) for _ in range(5)], path.parent) for n in (1, 2, 3)]
    assert [wait(writer) for writer in writers] == [0, 0, 0]
    assert number_of(path) in (1, 2, 3) and hidden(path.parent) == []
    assert load_manifest(path) == manifest(number_of(path))


def test_a_library_that_was_changed_is_vouched_for_by_nothing(path: Path) -> None:
    put(path, 1)
    library = path.with_name(manifest(1).library)
    library.write_bytes(code(2))
    found, digest = vouching(path)
    assert found.sha256 != digest
    # Nor by a file that a killed writer left, unless it is that writer's library.
    write_atomically(path.with_name(f".{path.name}.next"), b"{")
    assert vouching(path) == (found, digest)
    library.unlink()
    with pytest.raises(FileNotFoundError):
        vouching(path)
    path.unlink()
    with pytest.raises(LibraryError, match="cannot be read"):
        vouching(path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NatcError, match=f"{tmp_path}/file/lib cannot be created"):
        put(tmp_path / "file" / "lib" / "a.json", 1)


# Packages


FILES = {f"lib/{n}.so": constant(code(n)) for n in range(2)}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "natc_kernels-1.0-py3-none-manylinux_2_28_x86_64.whl": lambda path: archives.write_wheel(
        path, FILES, metadata="Name: natc\n", entry_points="", epoch=0
    ),
    "natc-kernels.zip": lambda path: archives.write_zip(path, FILES, epoch=0),
    "natc-kernels.tar.gz": lambda path: archives.write_tar(path, FILES, epoch=0),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_packer_leaves_the_old_package_or_the_new_one(tmp_path: Path, name: str) -> None:
    path, write = tmp_path / "dist" / name, WRITERS[name]
    whole = write(tmp_path / "whole" / name).read_bytes()
    for before in (None, b"old"):
        found = []
        for _ in end_at_each_step(lambda: write(path), path.parent):
            found.append(path.read_bytes() if path.exists() else None)
            path.unlink(missing_ok=True)
            if before is not None:
                path.write_bytes(before)
        assert found[0] in (None, before) and found[-1] == whole
        assert set(found) <= {None, before, whole} and len(found) > 2


def test_a_killed_packer_leaves_a_whole_variant_for_the_hub_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_metadata", lambda *_: b"{}\n")

    def write(repository: Path) -> Path:
        return hub.write_variant(repository, "tvm-ffi01-cpu-x86_64-linux", [], FILES, version=1)

    def contents(directory: Path) -> dict[str, bytes]:
        return {
            str(file.relative_to(directory)): file.read_bytes()
            for file in directory.rglob("*")
            if file.is_file()
        }

    repository = tmp_path / "dist"
    variant = write(repository)
    whole = contents(variant)
    seen = set()
    for _ in end_at_each_step(lambda: write(repository), repository):
        assert not variant.exists() or contents(variant) == whole
        seen.add(variant.exists())
        write(repository)
    assert seen == {True, False} and contents(variant) == whole


NAMES = assemble.Names("natc-kernels-llvm", "natc_kernels_llvm", "llvm", "1.0", "linux_x86_64")
FORMS = ("wheel", "hf")
WAITS = 7


@pytest.fixture
def piece(tmp_path: Path) -> Piece:
    library = tmp_path / manifest(1).library
    library.write_bytes(code(1))
    return Piece(library, manifest(1), f"{library.stem}.json")


def package(piece: Piece, output: Path) -> None:
    """Write packages of several kinds; those of two calls have the same bytes."""
    assemble.write(FORMS, [piece], NAMES, output, when=0)


def package_unless_it_waits(piece: Piece, output: Path) -> None:
    """The same, but a process that would wait for another ends with WAITS."""
    attempts = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal attempts
        if event == "fcntl.flock" and arguments[1] != fcntl.LOCK_UN:
            attempts += 1
            if attempts > 1:
                os._exit(WAITS)

    sys.addaudithook(watch)
    package(piece, output)


def everything(directory: Path) -> dict[str, bytes]:
    """All files of a directory and below, hidden ones too, but for the lock."""
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and file.name != ".natc.lock"
    }


def test_what_a_killed_packer_left_goes_with_the_next(tmp_path: Path, piece: Piece) -> None:
    output = tmp_path / "dist"
    package(piece, output)
    (output / ".natc_kernels_of_mine.tmp").write_text("stays")
    whole, left = everything(output), 0
    for _ in end_at_each_step(lambda: package(piece, output), output):
        left += len(everything(output)) > len(whole)
        # Whatever the next one writes.
        assemble.write((), [], NAMES, output, when=0)
        assert everything(output) == whole
    assert left > len(FORMS)


def test_a_packer_leaves_the_files_of_another_that_is_at_work(
    tmp_path: Path, piece: Piece
) -> None:
    output = tmp_path / "dist"
    package(piece, output)
    whole, waited = everything(output), 0
    for step in range(1, MOST, 3):
        first = start(lambda: package(piece, output), output, step, signal.SIGSTOP)
        if not stops(first):
            assert waited > step / 6
            return
        ended = wait(start(lambda: package_unless_it_waits(piece, output), output))
        assert ended in (0, WAITS)
        waited += ended == WAITS
        os.kill(first, signal.SIGCONT)
        assert wait(first) == 0 and everything(output) == whole
    raise AssertionError(f"more than {MOST} steps")


# Builds by calls


def test_a_call_that_is_killed_while_it_builds_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path))
    spec, target = KernelSpec.parse(SPEC), Target("llvm", "x86-64-v2")

    def killed(words: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(jit, "_run", killed)
    first = start(lambda: jit.build(spec, target, "forward", lambda: False), tmp_path)
    assert wait(first) == -signal.SIGKILL
    built = []
    monkeypatch.setattr(jit, "_run", built.append)
    assert jit.build(spec, target, "forward", lambda: False)
    assert len(built) == 1 and str(tmp_path / "jit" / "forward") in built[0]
    # Once another process has built it, there is nothing to do.
    assert jit.build(spec, target, "forward", lambda: True) and len(built) == 1
