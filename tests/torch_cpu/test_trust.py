"""Libraries that others could have written, or that are for another machine, are not opened."""

from __future__ import annotations

import os
import re
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.c_library import KERNEL_SIZE, SPECS, LibraryDirectory, compile_c
from support.library_files import library_of, rewrite
from support.tiny_library import add_wheel

import natc
from natc import runtime
from natc.checks.inputs import make_inputs
from natc.errors import ArgumentError, LibraryError, NotCoveredError
from natc.host import detect
from natc.runtime import load, trust

SPEC = SPECS[False]
SHAPE = (1, 5, 6, 2, SPEC.head_dim)
STRANGER = 54321


def attend() -> torch.Tensor:
    query, key, value, _ = make_inputs(SHAPE)
    return natc.na2d(query, key, value, KERNEL_SIZE)


class Disk:
    """What `os.lstat` says of some paths, whoever runs the tests; other paths are root's, 0755."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[Path, tuple[int, int, int]] = {}
        system = SimpleNamespace(name="posix", lstat=self._stat, geteuid=lambda: 1000)
        monkeypatch.setattr(trust, "os", system)

    def add(self, path: str, mode: int, user: int = 1000, group: int = 1000) -> Path:
        self.known[Path(path)] = (mode, user, group)
        return Path(path)

    def _stat(self, path: Path) -> os.stat_result:
        mode, user, group = self.known.get(Path(path), (0o755, 0, 0))
        return os.stat_result((stat.S_IFDIR | mode, 0, 0, 0, user, group, 0, 0, 0, 0))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.delenv("NATC_ALLOW_WRITABLE_LIBRARIES", raising=False)
    return Disk(monkeypatch)


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o500])
@pytest.mark.parametrize("user", [0, 1000])
def test_what_only_the_user_or_root_can_write_is_trusted(disk: Disk, mode: int, user: int) -> None:
    assert trust.distrust(disk.add("/nowhere/lib", mode, user)) is None


@pytest.mark.parametrize(
    ("mode", "user", "message"),
    [
        (0o777, 1000, "can be written by everyone (mode 0777): chmod go-w '/nowhere/lib'"),
        (0o757, 0, "can be written by everyone"),
        (0o1777, 0, "keep libraries in a directory of their own"),
        (0o775, 1000, f"can be written by group {STRANGER} (mode 0775)"),
        (0o755, STRANGER, f"belongs to user {STRANGER}, who is neither root nor the user"),
    ],
)
def test_what_another_can_write_is_not(disk: Disk, mode: int, user: int, message: str) -> None:
    directory = disk.add("/nowhere/lib", mode, user, STRANGER)
    reason = trust.distrust(directory)
    assert reason is not None and message in reason and str(directory) in reason
    assert "NATC_ALLOW_WRITABLE_LIBRARIES=1" in reason


def test_directories_above_count_too(disk: Disk) -> None:
    directory = disk.add("/nowhere/shared/lib", 0o755)
    disk.add("/nowhere/shared", 0o777)
    reason = trust.distrust(directory)
    assert reason is not None and reason.startswith("/nowhere/shared can be written by everyone")
    disk.add("/nowhere/shared", 0o1777, 0)
    assert trust.distrust(directory) is None, "in a sticky directory, as /tmp, nobody replaces it"
    disk.add("/nowhere/shared", 0o755, STRANGER)
    assert trust.distrust(directory) is not None, "its owner may rename what lies in it"


def test_a_group_of_the_owner_alone_may_write(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    directory = disk.add("/nowhere/lib", 0o775)
    members: list[str] = []
    name = ["ann"]
    monkeypatch.setattr(pwd, "getpwuid", lambda _: type("User", (), {"pw_name": "ann"}))
    monkeypatch.setattr(
        grp, "getgrgid", lambda _: type("Group", (), {"gr_name": name[0], "gr_mem": members})
    )
    assert trust.distrust(directory) is None
    members.append("ann")
    assert trust.distrust(directory) is None
    members.append("bob")
    assert trust.distrust(directory) is not None
    members.clear()
    name[0] = "staff"
    assert trust.distrust(directory) is not None


def test_a_link_into_a_directory_that_others_can_write_is_followed(tmp_path: Path) -> None:
    target = tmp_path / "open"
    target.mkdir()
    target.chmod(0o777)
    (tmp_path / "link").symlink_to(target)
    reason = trust.distrust(tmp_path / "link")
    assert reason is not None and str(target) in reason


def test_each_link_and_directory_on_the_way_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can replace a link decides which file is loaded, even if the real file is safe."""
    safe, shared = tmp_path / "safe", tmp_path / "shared"
    for directory in (safe, shared):
        directory.mkdir()
    (safe / "real").write_text("")
    (shared / "further").symlink_to("../safe/real")
    (tmp_path / "direct").symlink_to("safe/../safe/real")
    (tmp_path / "through").symlink_to(shared / "further")
    assert trust.distrust(tmp_path / "direct") is trust.distrust(tmp_path / "through") is None
    shared.chmod(0o777)
    assert trust.distrust(tmp_path / "direct") is None
    reason = trust.distrust(tmp_path / "through")
    assert reason is not None and reason.startswith(f"{shared} can be written by everyone")
    shared.chmod(0o755)
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="levels of symbolic links"):
        trust.distrust(tmp_path / "round")
    lstat = os.lstat

    def of_a_stranger(path: Path) -> os.stat_result:
        fields = list(lstat(path))
        fields[stat.ST_UID] = STRANGER if path == shared / "further" else fields[stat.ST_UID]
        return os.stat_result(fields)

    monkeypatch.setattr(os, "lstat", of_a_stranger)
    reason = trust.distrust(tmp_path / "through")
    assert reason is not None and reason.startswith(f"{shared / 'further'} belongs to user")


def test_pytests_own_directories_are_trusted(tmp_path: Path) -> None:
    """As are the temporary directories of continuous integration, below a sticky /tmp."""
    assert trust.distrust(tmp_path) is None


# Calls


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_libraries_in_a_writable_directory_are_passed_over_once_and_said(
    kernels: LibraryDirectory, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    kernels.path.chmod(mode)
    (problem,) = runtime.problems()
    assert problem.path == kernels.path and "can be written by everyone" in problem.reason
    with pytest.warns(natc.NatcFallbackWarning, match="its libraries are not loaded"):
        attend()
    monkeypatch.setenv("NATC_STRICT", "1")
    runtime.clear()
    with pytest.raises(NotCoveredError, match="NATC_ALLOW_WRITABLE_LIBRARIES=1"):
        attend()
    monkeypatch.setenv("NATC_ALLOW_WRITABLE_LIBRARIES", "1")
    runtime.clear()
    assert runtime.problems() == []
    attend()
    assert kernels.calls(SPEC) == 1


@pytest.mark.parametrize("ending", [".so", ".json"])
def test_a_writable_file_in_a_safe_directory_is_refused(
    libraries: LibraryDirectory, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = libraries.add(SPEC)
    path = library_of(path) if ending == ".so" else path
    path.chmod(0o666)
    with pytest.raises(LibraryError, match=f"is not loaded: {path} can be written by everyone"):
        attend()
    monkeypatch.setenv("NATC_ALLOW_WRITABLE_LIBRARIES", "1")
    attend()


def test_a_library_that_is_a_link_into_a_writable_directory_is_refused(
    libraries: LibraryDirectory, tmp_path: Path
) -> None:
    path = library_of(libraries.add(SPEC))
    shared = tmp_path / "shared"
    shared.mkdir()
    path.rename(shared / "library")
    path.symlink_to(shared / "library")
    attend()
    assert libraries.calls(SPEC) == 1
    shared.chmod(0o777)
    runtime.clear()
    with pytest.raises(LibraryError, match=f"is not loaded: {shared} can be written by everyone"):
        attend()


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_the_file_that_was_checked_is_the_file_that_is_opened(
    libraries: LibraryDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_descriptors: bool,
) -> None:
    """Though another file lies at its path since it was checked."""
    path = library_of(libraries.add(SPEC))
    wanted, checked = attend(), load._check_machine
    runtime.clear()
    monkeypatch.setattr(load, "_modules", {})
    if not has_descriptors:
        monkeypatch.setattr(load, "_DESCRIPTORS", tmp_path)
    doubled = compile_c(SPEC, tmp_path / "doubled.so", factor=2)
    descriptors = os.listdir("/proc/self/fd")

    def checked_late(*arguments: Any) -> None:
        checked(*arguments)
        os.replace(doubled, path)

    monkeypatch.setattr(load, "_check_machine", checked_late)
    torch.testing.assert_close(attend(), wanted)
    assert not doubled.exists() and os.listdir("/proc/self/fd") == descriptors


def test_where_there_is_no_place_for_a_temporary_file_the_error_says_so(
    libraries: LibraryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries.add(SPEC)
    monkeypatch.setattr(load, "_MEMORY", "/dev/null/absent")
    attend()
    runtime.clear()
    monkeypatch.setattr(load, "_modules", {})
    monkeypatch.setattr("tempfile.tempdir", "/dev/null/absent")
    with pytest.raises(LibraryError, match="no directory for a temporary file: not a directory"):
        attend()


def test_links_of_processes_that_were_killed_while_they_opened_a_library_are_removed(
    tmp_path: Path,
) -> None:
    now = time.time()
    ages = {"natc-load-old": 2 * load._LONG_AGO, "natc-load-new": 0.0, "natc-load-mine": 1e6}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to("/proc/self/fd/9" if age < 1e6 else "/etc")
        os.utime(tmp_path / name, (now - age, now - age))
    load._remove_abandoned(str(tmp_path))
    links = {path.parent.name for path in tmp_path.glob("*/link")}
    assert links == {path.name for path in tmp_path.iterdir()}
    assert links == {"natc-load-new", "natc-load-mine"}


def test_the_system_names_an_open_library_by_its_path(libraries: LibraryDirectory) -> None:
    """So do profilers and debuggers that ask the system."""
    path = library_of(libraries.add(SPEC))
    attend()
    assert f"{path}\n" in Path("/proc/self/maps").read_text()
    # The loader knows it by its inode: opened once more, it is the same library.
    assert libraries.calls(SPEC) == 1


def test_an_empty_writable_directory_is_no_problem(libraries: LibraryDirectory) -> None:
    libraries.path.mkdir()
    libraries.path.chmod(0o777)
    runtime.clear()
    assert runtime.problems() == []


def test_trust_costs_a_call_nothing(
    kernels: LibraryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend()

    def asked(path: Path) -> None:
        pytest.fail(f"looked at {path} in a call")

    monkeypatch.setattr("natc.runtime.scan.distrust", asked)
    monkeypatch.setattr("natc.runtime.load.distrust", asked)
    attend()
    assert kernels.calls(SPEC) == 2


def foreign(data: bytearray) -> str:
    machine, number = ("aarch64", 183) if detect.host_machine() == "x86_64" else ("x86_64", 62)
    struct.pack_into("<H", data, 18, number)
    return f"is for {machine}, and this machine is {detect.host_machine()}"


def truncated(data: bytearray) -> str:
    del data[len(data) - 100 :]
    return "cannot be opened: it is cut short"


def a_script(data: bytearray) -> str:
    data[:] = b"#!/bin/sh\n" * 20
    return "cannot be opened: it is not an ELF file"


def of_32_bits(data: bytearray) -> str:
    data[4] = 1
    return "cannot be opened: it is not for a 64-bit little-endian machine"


@pytest.mark.parametrize("change", [foreign, truncated, a_script, of_32_bits])
def test_a_file_that_this_machine_cannot_load_is_refused_by_name(
    libraries: LibraryDirectory, change: Callable[[bytearray], str]
) -> None:
    """Though its manifest vouches for it."""
    path = libraries.add(SPEC)
    data = bytearray(library_of(path).read_bytes())
    message = change(data)
    rewrite(path, bytes(data))
    runtime.clear()
    with pytest.raises(LibraryError, match=re.escape(f"library {library_of(path)} {message}")):
        attend()


def test_a_library_of_a_wheel_is_to_be_installed_again(
    libraries: LibraryDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    add_wheel(site)
    (site / "natc_kernels_tiny").mkdir()
    monkeypatch.syspath_prepend(str(site))
    directory = LibraryDirectory(site / "natc_kernels_tiny" / "lib", libraries.compiled)
    library = library_of(directory.add(SPEC))
    runtime.clear()
    attend()
    assert directory.calls(SPEC) == 1, "a library of an installed wheel serves calls"
    changed = library.read_bytes() + b"\0"
    # A new file: this process would crash when it ends if the file that it has loaded changed.
    library.unlink()
    library.write_bytes(changed)
    runtime.clear()
    message = "the wheel of natc-kernels-tiny again: pip install --force-reinstall --no-deps FILE"
    with pytest.raises(LibraryError, match=message):
        attend()


def test_a_directory_that_a_program_names_is_searched_first(
    libraries: LibraryDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natc.store.workspace._used", [])
    libraries.add(SPEC)
    attend()
    first, mine = (LibraryDirectory(tmp_path / n, libraries.compiled) for n in ("first", "mine"))
    for directory in (first, mine):
        directory.add(SPEC)
    monkeypatch.setenv("NATC_LIB_PATH", f"{first.path}{os.pathsep}{libraries.path}")
    runtime.clear()
    attend()
    runtime.use(mine.path)
    attend()
    assert (libraries.calls(SPEC), first.calls(SPEC), mine.calls(SPEC)) == (1, 1, 1)
    for wrong in (tmp_path / "gone", mine.path / f"{SPEC.name}.so"):
        with pytest.raises(ArgumentError, match=f"directory is '{wrong}', and there is no such"):
            runtime.use(wrong)
    attend()
    assert mine.calls(SPEC) == 2
