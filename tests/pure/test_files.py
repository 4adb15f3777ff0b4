from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from natc.errors import NatcError
from natc.store.files import append_line, make_directory, writable, write_atomically


def below_a_file(tmp_path: Path) -> Path:
    """A directory that nobody can create, root included: its parent is a file."""
    (tmp_path / "file").write_text("I am a file")
    return tmp_path / "file" / "directory"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomically(path, "old")
    write_atomically(path, b"new \xff")
    assert path.read_bytes() == b"new \xff"
    assert os.listdir(path.parent) == ["b.json"]


@pytest.mark.parametrize(
    ("umask", "directory", "file"), [(0, 0o755, 0o644), (0o027, 0o750, 0o640)]
)
def test_only_the_user_writes_files(tmp_path: Path, umask: int, directory: int, file: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a" / "b" / "c", "x")
    finally:
        os.umask(before)
    paths = (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c")
    assert [path.stat().st_mode & 0o777 for path in paths] == [directory, directory, file]


def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "schedule.json"
    write_atomically(path, "old")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NatcError, match="no space left on device") as caught:
        write_atomically(path, "new")
    assert str(tmp_path) in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["schedule.json"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    directory = below_a_file(tmp_path)
    for write in (
        lambda: write_atomically(directory / "x.json", "x"),
        lambda: append_line(directory / "x.jsonl", "x"),
        lambda: make_directory(directory),
    ):
        with pytest.raises(NatcError) as caught:
            write()
        assert str(directory) in str(caught.value)
    assert (tmp_path / "file").read_text() == "I am a file"


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "a" / "log.jsonl"
    append_line(path, "one")
    append_line(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\n"
    # A line that a crash cut short stays.
    path.write_bytes(b'{"a": 1}\n{"b": ')
    append_line(path, '{"c": 3}')
    assert path.read_bytes() == b'{"a": 1}\n{"b": \n{"c": 3}\n'
    with pytest.raises(NatcError, match="newline"):
        append_line(tmp_path / "log", "a\nb")
    assert not (tmp_path / "log").exists()
    with pytest.raises(NatcError, match="cannot be appended to"):
        append_line(tmp_path, "x")


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [f"{writer} {'x' * 500}" for writer in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for line in lines * 20:
            pool.submit(append_line, path, line)
    assert sorted(path.read_text().splitlines()) == sorted(lines * 20)


def test_writable(tmp_path: Path) -> None:
    assert writable(tmp_path)
    assert writable(tmp_path / "not" / "yet" / "there")
    assert not writable(below_a_file(tmp_path))
