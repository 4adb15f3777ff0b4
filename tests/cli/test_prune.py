"""`natc list --prune`: what serves no call goes from natc's cache, and nothing else goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builder_double import Builder
from support.command_line import Natc
from support.library_files import edit_json, library_of

from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store import workspace
from natc.targets import Target

NOTE = "can be removed: natc list --prune"


def build(directory: Path, kernel: int, *targets: str) -> Path:
    """Put a library that is no code, with a true manifest, into a directory."""
    made_for = [Target.parse(name) for name in targets] or [detect_host_cpu()]
    spec = KernelSpec.make(kernel, dtype="float32")
    return Builder()(spec, made_for, directory, families=("forward",))


def set_version(path: Path, version: int) -> None:
    edit_json(path, schema_version=version)


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def cache(place: Path) -> Path:
    return workspace.cache_dir()


def test_all_that_serves_no_call_goes_and_nothing_else(
    natc: Natc, cache: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    lib, jit = workspace.library_dir(), workspace.jit_dir("unfused")
    build(lib, 3)
    # Not for this machine, and yet somebody built it.
    build(lib, 4, "cuda-sm_80", "cuda-sm_90")
    set_version(build(lib, 5), 99)
    set_version(build(jit, 5), 99)
    # None of natc's cache, however damaged.
    elsewhere = place / "elsewhere"
    set_version(build(elsewhere, 3), 1)
    library_of(build(elsewhere, 4)).unlink()
    monkeypatch.setenv("NATC_LIB_PATH", str(elsewhere))
    for directory in (cache / "package" / "a", cache / "zig"):
        set_version(build(directory, 3), 1)
    (lib / "README").write_text("mine")
    kept = files(place)

    older = build(lib, 7)
    set_version(older, 1)
    damaged = build(jit, 7)
    library_of(damaged).write_bytes(b"other code")
    missing = build(jit, 8)
    library_of(missing).unlink()
    nonsense = lib / "nonsense.json"
    nonsense.write_text("[")
    cut_off = build(lib, 9)
    orphan = library_of(cut_off)
    cut_off.unlink()
    piece = lib / f".{cut_off.name}.0123.tmp"
    piece.write_text("{")

    assert "note: 6 leftovers in natc's cache " + NOTE in natc("list").err
    assert len(files(place)) > len(kept)
    code, out, err = natc("list", "--prune")
    assert (code, files(place)) == (0, kept)
    lines = [line.removeprefix("removed ") for line in out.splitlines() if "removed" in line]
    assert len(lines) == 6
    for path, why in (
        (older, "an older natc built the library"),
        (damaged, "its library is not the file it vouches for"),
        (missing, "its library is missing"),
        (nonsense, "is not valid"),
        (orphan, "no manifest names it"),
        (piece, "is a part of a file"),
    ):
        assert any(line.startswith(f"{path}: ") and why in line for line in lines), path
    # This command does not remove the files behind the remaining problems.
    assert err.count("problem: ") == 4 and "note:" not in err

    assert natc("list", "--prune").out.startswith("nothing to remove\n")
    assert files(place) == kept


def test_where_others_can_write_nothing_is_removed(natc: Natc, cache: Path) -> None:
    set_version(build(workspace.library_dir(), 3), 1)
    kept = files(cache)
    workspace.library_dir().chmod(0o777)
    code, out, err = natc("list", "--prune")
    assert (code, files(cache)) == (0, kept)
    assert out.startswith("nothing to remove\n") and "chmod go-w" in err and "note:" not in err


def test_what_was_removed_is_in_the_document(natc: Natc, cache: Path) -> None:
    path = build(workspace.library_dir(), 3)
    set_version(path, 1)
    content = natc.json("list", "--prune")
    (removed,) = content["removed"]
    assert removed["path"] == str(path) and "older natc" in removed["reason"]
    assert "natc build" not in removed["reason"]
    assert content["libraries"] == []
    assert natc.json("list", "--prune")["removed"] == []
    assert "removed" not in natc.json("list")


def test_a_cache_that_is_not_there_is_not_made(natc: Natc, cache: Path) -> None:
    assert natc("list", "--prune").code == 0
    assert not cache.exists()


def test_what_cannot_be_removed_is_named(natc: Natc, cache: Path) -> None:
    path = build(workspace.library_dir(), 3)
    library = library_of(path)
    set_version(path, 1)
    library.unlink()
    library.mkdir()
    code, _, err = natc("list", "--prune")
    assert code == 1 and f"file {library} cannot be removed" in err


def test_the_doctor_names_the_command(natc: Natc, cache: Path) -> None:
    assert NOTE not in natc("doctor").err
    set_version(build(workspace.jit_dir("forward"), 3), 1)
    code, _, err = natc("doctor")
    assert code == 1 and "note: 1 leftover in natc's cache " + NOTE in err
    natc("list", "--prune")
    assert natc("doctor").code == 0
