"""`natc package`: its options, and packing a directory; builds are in tests/compiler."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Natc
from support.fresh_process import start_natc
from support.held_lock import Holder
from support.library_files import library_of
from support.loaded_file import load_file
from support.signing_keys import write_keys
from support.tiny_library import ARCH, SPEC, add_library

from natc.cli.verbs import package
from natc.host import detect
from natc.package import jobs as build
from natc.spec import KernelSpec
from natc.store import files


@pytest.fixture
def libraries(place: Path) -> Path:
    add_library(place / "libraries")
    return place / "libraries"


def test_a_directory_becomes_every_kind_of_package(
    natc: Natc, libraries: Path, place: Path
) -> None:
    words = ["package", "--from", str(libraries), "--format", "wheel,archive,zip,hf"]
    content = natc.json(*words, "-o", str(place / "dist"))
    name = f"natc-kernels-llvm-{ARCH}"
    assert content["name"] == name
    assert content["archs"] == [ARCH]
    assert [file["format"] for file in content["files"]] == ["wheel", "archive", "zip", "hf"]
    for file in content["files"]:
        path = Path(file["path"])
        assert path.parent == place / "dist" or file["format"] == "hf"
        if path.is_file():
            assert path.stat().st_size == file["bytes"]
        assert natc("verify", str(place / "dist" / path.name)).code == 0 or path.is_dir()
    assert natc("verify", str(place / "dist" / "natc-kernels")).code == 0
    (size,) = content["sizes"].values()
    assert size["bytes"] == library_of(libraries / f"{SPEC.name}.llvm-{ARCH}.json").stat().st_size
    (row,) = content["libraries"]
    assert (row["spec"], row["operations"]) == (SPEC.name, ["forward"])
    text = natc(*words, "-o", str(place / "dist")).out
    assert text.count("To use it: pip install ") == 1
    assert text.count(": unpack it, and name the directory in NATC_LIB_PATH") == 2
    assert f"wrote {content['files'][0]['path']}" in text and ARCH in text


def test_a_package_for_the_hub_can_be_imported(natc: Natc, libraries: Path, place: Path) -> None:
    natc("package", "--from", str(libraries), "--format", "hf", "-o", str(place))
    folder = place / "natc-kernels" / "build" / f"tvm-ffi01-cpu-{detect.host_machine()}-linux"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cpu"}
    assert metadata["id"].isidentifier()
    for path, name in (
        (folder / "__init__.py", metadata["id"]),
        (folder / "natc_kernels" / "__init__.py", "old"),
    ):
        module = load_file(path, name)
        assert module.__all__ == ["na1d", "na2d", "na3d"]


def test_a_dry_run_needs_no_compiler_and_writes_nothing(natc: Natc, place: Path) -> None:
    words = ["package", "--target", "cuda", "--arch", "sm_90,sm_80", "--dry-run"]
    words += ["-o", str(place / "dist")]
    content = natc.json(*words)
    assert len(content["libraries"]) == 72, "without other options, it packages NAT's set"
    assert natc.json(*words, "--set", "nat") == content
    assert {row["built"] for row in content["libraries"]} == {False}
    assert content["libraries"][0]["archs"] == ["sm_80", "sm_90"]
    assert content["libraries"][0]["operations"] == ["forward", "backward"]
    text = natc(*words).out
    assert "would build 72 of 72 libraries" in text
    assert not (place / "dist").exists() and not (place / "cache").exists()


def test_options_narrow_a_set(natc: Natc) -> None:
    words = ["--kernel", "7", "--dtype", "float16", "--rpb", "--arch", "x86-64-v3,x86-64-v2"]
    content = natc.json("package", "--set", "nat", *words, "--dry-run")
    assert [row["library"] for row in content["libraries"]] == [
        f"na2d_k7_d{dim}_float16_rpb.llvm-x86-64-v{level}" for dim in (32, 64) for level in (2, 3)
    ]
    content = natc.json("package", "-k", "3", "--target", "llvm-aarch64", "--dry-run")
    assert [row["library"] for row in content["libraries"]] == [
        "na2d_k3_d32_float32_rpb.llvm-aarch64", "na2d_k3_d32_float32.llvm-aarch64"
    ]  # fmt: skip


class Builds:
    """Stands for the compiler: makes tiny libraries, and fails when it is told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fail_at: int | None = None

    def __call__(self, todo: Any, tools: str, workers: int) -> Any:
        for job in todo:
            if len(self.done) == self.fail_at:
                raise KeyboardInterrupt
            add_library(build.directory_of(job, tools), job.spec)
            self.done.append(job.spec.name)
            yield job, []


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    double = Builds()
    monkeypatch.setattr(build, "build_all", double)
    monkeypatch.setattr(package.options, "require_compiler", lambda verb: None)
    return double


WORDS = ["package", "--kernel", "3,5", "--no-rpb", "--target", "llvm", "--arch", ARCH]


def test_an_interrupted_package_goes_on_where_it_was(
    natc: Natc, builds: Builds, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "-o", str(place / "dist")]
    builds.fail_at = 1
    code, out, err = natc(*words)
    assert (code, out) == (130, "")
    assert f"go on with: natc {' '.join(words)}" in err
    assert not (place / "dist").exists()
    builds.fail_at = None
    code, out, err = natc(*words)
    assert code == 0
    assert "1 libraries are built already" in err
    assert "built 1/1 na2d_k5_d32_float32" in err
    assert builds.done == [KernelSpec.make(3).name, KernelSpec.make(5).name]
    resumed = natc.json(*words)
    assert [row["built"] for row in natc.json(*words, "--dry-run")["libraries"]] == [True] * 2
    # It has the bytes of a fresh package.
    monkeypatch.setenv("NATC_CACHE_DIR", str(place / "other"))
    fresh = natc.json(*WORDS, "-o", str(place / "fresh"))
    assert (resumed["reused"], fresh["built"]) == (2, 2)
    assert resumed["files"][0]["sha256"] == fresh["files"][0]["sha256"]


@pytest.mark.timeout(200)
def test_what_is_free_is_built_while_others_build(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In processes, on files; the libraries are built already."""
    specs = [KernelSpec.make(kernel) for kernel in (3, 5, 7)]
    jobs = build.jobs(specs, "llvm", [ARCH], ("forward",))
    for job in jobs:
        add_library(build.directory_of(job, "tools"), job.spec)
    holder = Holder(build.directory_of(jobs[0], "tools") / ".lock")
    building = build.build_all(jobs, "tools", 1)
    # Two that end at the same time come in either order.
    first_two = sorted((next(building), next(building)), key=lambda built: jobs.index(built[0]))
    assert first_two == [(jobs[1], []), (jobs[2], [])]
    holder.let_go()
    assert list(building) == [(jobs[0], [])]
    # It says once that it waits, however often it tries.
    (message,) = caplog.messages
    assert message.startswith(f"natc waits for {jobs[0].name}: process {os.getpid()} (")
    assert f") holds the lock {holder.path}; " in message


def test_a_library_that_another_process_builds_is_waited_for_as_long_as_allowed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "longest_wait", 0.5)
    job = build.jobs([KernelSpec.make(3)], "llvm", [ARCH], ("forward",))[0]
    build.directory_of(job, "tools").mkdir(parents=True)
    holder = Holder(build.directory_of(job, "tools") / ".lock")
    with pytest.raises(files.Locked, match=str(holder.path)):
        list(build.build_all([job], "tools", 1))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("stopped", [False, True])
def test_a_folder_that_another_packs_into_is_waited_for(
    libraries: Path, place: Path, stopped: bool
) -> None:
    output = place / "dist"
    output.mkdir()
    holder = Holder(output / ".natc.lock")
    words = ["package", "--from", str(libraries), "-o", str(output), "--json"]
    running = start_natc(*words, cwd=place)
    assert running.stderr is not None
    try:
        message = running.stderr.readline()
        assert message.startswith(f"natc waits: process {os.getpid()} (")
        assert f") holds the lock {holder.path}; if it hangs, end it: kill" in message
        if stopped:
            running.send_signal(signal.SIGINT)
        else:
            holder.let_go()
        out, err = running.communicate(timeout=100)
    finally:
        running.kill()
        running.wait()
    content = {path.name for path in output.iterdir()} - {".natc.lock"}
    if stopped:
        again = f"natc {' '.join(words)}"
        message = f"natc: stopped. Everything built is kept; go on with: {again}\n"
        assert (running.returncode, out, err, content) == (130, "", message, set())
    else:
        assert (running.returncode, err) == (0, "")
        assert content == {Path(file["path"]).name for file in json.loads(out)["files"]}


PAGE = Path(__file__).parents[2] / "docs" / "ship-kernels.md"
COMMANDS = [
    line.split(maxsplit=2)[2]
    for line in PAGE.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    if line.startswith("natc package ")
]


@pytest.mark.parametrize("words", COMMANDS)
def test_the_commands_of_the_page_are_understood(
    natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(place)
    arguments = shlex.split(words.replace("$NATC_LIB_PATH", "lib"))
    source = arguments[arguments.index("--from") + 1] if "--from" in arguments else "lib"
    add_library(place / source)
    write_keys(place)
    content = natc.json("package", *arguments, "--dry-run")
    assert content["libraries"] or content["from"] == source
    if content["from"]:
        assert natc("package", *arguments).code == 0
