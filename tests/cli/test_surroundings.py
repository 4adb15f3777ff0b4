"""What natc says where the machine is at fault: variables, directories, streams, file systems."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command_line import Natc, Result
from support.held_lock import Holder
from support.tiny_library import SPEC, add_library

from natc import env, runtime
from natc.errors import ArgumentError, BuildError, NatcError
from natc.host import c_compiler
from natc.host.detect import detect_host_cpu
from natc.runtime import jit
from natc.store import files, workspace
from natc.store.temporary import temporary_directory

pytestmark = pytest.mark.quick


def one_line(result: Result) -> str:
    """Return the only line that a failed command printed."""
    assert (result.code, result.out) == (1, "") and result.err.startswith("natc: error: ")
    assert result.err.count("\n") == 1
    return result.err.removeprefix("natc: error: ")


@pytest.mark.parametrize("variable", [env.NATC_CACHE_DIR, env.NATC_LIB_PATH, env.NATC_WORKSPACE])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("~nosuchuser/x", "there is no home directory of that user; give a path that"),
        ("/" + "x" * 300, "cannot be a path of this system: file name too long"),
        ("/x" * 3000, "cannot be a path of this system: file name too long"),
    ],
)
def test_a_variable_that_is_no_path_is_named(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, variable: env.EnvVar, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable.name, value)
    for verb in ("list", "doctor"):
        message = one_line(natc(verb))
        assert message.startswith(f"{variable.name} has '{value[:10]}") and reason in message
        assert len(message) < 300
    if variable != env.NATC_WORKSPACE:
        with pytest.raises(NatcError, match=f"{variable.name} has "):
            runtime.kernels()
    with pytest.raises(ArgumentError, match="there is no such directory"):
        runtime.use(value)


@pytest.mark.parametrize("verb", ["list", "doctor"])
def test_a_word_that_NATC_JIT_does_not_have_is_named(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("NATC_JIT", "maybe")
    message = one_line(natc(verb))
    assert message == "NATC_JIT is 'maybe'; it must be one of on, off, readonly.\n"


def test_a_directory_that_was_deleted_is_no_place_to_work_in(
    natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "gone").mkdir()
    monkeypatch.chdir(place / "gone")
    (place / "gone").rmdir()
    assert "the current directory does not exist any more" in one_line(natc("verify", "."))
    monkeypatch.setenv("NATC_LIB_PATH", "lib")
    assert "NATC_LIB_PATH has 'lib'" in one_line(natc("list"))


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--help"], ["--version"]])
def test_stdout_that_is_full_or_closed_is_said(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert one_line(natc(*words)) == "the output cannot be written: no space left on device.\n"
    monkeypatch.setattr(sys, "stdout", None)
    assert one_line(natc(*words)).startswith("stdout is closed; ")


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    """Else it would get what compilers print."""
    program = (
        "import os, sys; from natc.cli import output\n"
        "try: output.prepare()\n"
        "except Exception: pass\n"
        "os._exit(os.open('/dev/zero', os.O_RDONLY) if sys.stderr else 99)"
    )
    # The shell closes all three.
    command = f"exec {sys.executable} -c '{program.replace(chr(39), chr(34))}' <&- >&- 2>&-"
    assert 3 <= subprocess.run(["sh", "-c", command], check=False).returncode < 99


def test_a_path_with_bytes_that_are_no_text_is_shown_and_is_in_the_document(
    natc: Natc, place: Path
) -> None:
    path = place / os.fsdecode(b"\xff")
    add_library(path)
    assert natc("verify", str(path)).code == 0
    (report,) = natc.json("verify", str(path))["checked"]
    assert report["path"] == str(path)


def test_a_file_system_without_programs_is_passed_over_and_said(
    natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_library(place / "lib")
    monkeypatch.setenv("NATC_LIB_PATH", str(place / "lib"))
    facts = runtime.this_machine()["llvm"]
    runtime.clear()
    before = runtime.explain(SPEC, facts)
    assert before.choice is not None and str(before.command).startswith("natc build")
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    runtime.clear()
    (problem,) = runtime.problems()
    assert problem.path == place / "lib" and "is mounted noexec" in problem.reason
    explanation = runtime.explain(SPEC, facts)
    assert explanation.choice is None
    assert str(explanation.command).startswith("NATC_CACHE_DIR=DIRECTORY natc build")
    message = natc("doctor").out
    assert f"problem: {place / 'lib'}: " in message and "mounted noexec" in message


def test_a_call_builds_nothing_where_no_library_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_JIT", "on")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(jit, "check_compilers", lambda target: None)
    target = detect_host_cpu()
    assert jit.unavailable(target) is None
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    reason = jit.unavailable(target)
    assert reason is not None and "mounted noexec" in reason and "NATC_CACHE_DIR" in reason


def test_a_full_disk_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match="^linking failed: no space is left on a disk.*TMPDIR"):
        c_compiler.run(["sh", "-c", "echo x.o: No space left on device >&2; exit 1"], "linking")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    with pytest.raises(NatcError, match="has 3 MiB free, and natc needs 16: free some, or name"):
        temporary_directory("build").__enter__()


def test_a_command_waits_for_a_lock_as_long_as_it_may(
    natc: Natc, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set again at the end, whatever the commands set.
    monkeypatch.setattr(files, "longest_wait", files.longest_wait)
    directory = workspace.library_dir()
    directory.mkdir(parents=True)
    (directory / ".part.tmp").touch()
    holder = Holder(directory / ".natc.lock")
    assert str(holder.path) in one_line(natc("list", "--prune", "--wait", "0"))
    holder.let_go()
    assert natc("list", "--prune").code == 0 and not (directory / ".part.tmp").exists()


def test_a_home_that_cannot_be_written_is_named_with_the_remedy(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    (place / "file").touch()
    # Not even root can create a directory there.
    monkeypatch.setenv("NATC_CACHE_DIR", str(place / "file" / "cache"))
    assert natc("list").code == 0
    assert natc("list", "--prune").code == 0
    result = natc("doctor")
    assert result.code == 1 and "name another with NATC_CACHE_DIR" in result.out
    warnings: list[str] = []
    monkeypatch.setattr(jit._log, "warning", lambda text, *words: warnings.append(text % words))
    monkeypatch.setattr(jit, "_failures", {})
    monkeypatch.setenv("NATC_JIT", "on")
    assert not jit.build(SPEC, detect_host_cpu(), "forward", lambda operation: False)
    assert len(warnings) == 1 and str(workspace.jit_dir("forward")) in warnings[0]
