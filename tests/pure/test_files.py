from __future__ import annotations

import os
import threading
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


def test_new_files_have_the_users_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "ours", "x")
        (tmp_path / "usual").write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_nobody_else_may_write_what_is_made(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_atomically(tmp_path / "a" / "b" / "c", "x")
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_a_failed_write_leaves_the_old_file(
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


def test_a_file_that_is_a_directory_cannot_be_appended_to(tmp_path: Path) -> None:
    with pytest.raises(NatcError, match="cannot be appended to"):
        append_line(tmp_path, "x")


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "a" / "log.jsonl"
    append_line(path, "one")
    append_line(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\n"


def test_a_line_cut_short_is_kept_and_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    append_line(path, '{"c": 3}')
    assert path.read_bytes() == b'{"a": 1}\n{"b": \n{"c": 3}\n'


def test_two_lines_in_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NatcError, match="newline"):
        append_line(tmp_path / "log", "a\nb")
    assert not (tmp_path / "log").exists()


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [f"{writer} {'x' * 500}" for writer in range(4)]
    threads = [
        threading.Thread(target=lambda line=line: [append_line(path, line) for _ in range(20)])
        for line in lines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_text().splitlines()) == sorted(lines * 20)


def test_writable(tmp_path: Path) -> None:
    assert writable(tmp_path)
    assert writable(tmp_path / "not" / "yet" / "there")
    assert not writable(below_a_file(tmp_path))
