"""A build's files, the schedule that it uses, and every way that it can fail."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import tvm
from support.built_kernels import open_entry
from support.forward_checks import call_forward, check_forward
from support.library_files import edit_json, library_of
from support.written_files import HOST_DECISIONS, make_host_schedule

import natc
from natc import runtime
from natc.checks.inputs import inputs_of, make_inputs
from natc.compiler import build
from natc.compiler.build import lower
from natc.compiler.space import space_for
from natc.errors import (
    BuildError,
    CompilerNotFound,
    NatcError,
    ScheduleError,
)
from natc.host import c_compiler, toolchain
from natc.host.detect import detect_host_cpu
from natc.operations import FAMILIES, operations_of
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec
from natc.store import elf, manifest, schedules
from natc.store.records import SpaceVersion
from natc.targets import Target

HOST = detect_host_cpu()
SPEC = KernelSpec.parse("na2d_k3_d8_float32")
WITH_RPB = KernelSpec.parse("na2d_k3_d8_float32_rpb")


@pytest.fixture
def directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NATC_LIB_PATH", str(place / "lib"))
    return place / "lib"


@pytest.fixture
def make(directory: Path) -> Callable[..., dict[str, Any]]:
    """Build a forward into the test's directory; return the manifest's content and the notes."""

    def build_it(spec: KernelSpec = SPEC, **options: Any) -> dict[str, Any]:
        notes: list[str] = []
        if "families" not in options:
            options.setdefault("operations", ("forward",))
        path = build.build_library(spec, HOST, directory, on_note=notes.append, **options)
        return json.loads(path.read_text()) | {"notes": notes}

    return build_it


def attend(spec: KernelSpec = SPEC) -> torch.Tensor:
    inputs = make_inputs((1, 6, 5, 2, 8), kernel_size=3 if spec.rpb else None)
    return natc.na2d(*inputs[:3], 3, rpb=inputs.rpb)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("[!.]*")}


# Files


def test_the_manifest_describes_the_library(make: Any, directory: Path) -> None:
    content = make(families=FAMILIES)
    path = directory / f"{SPEC.name}.{HOST.name}.json"
    written = manifest.load_manifest(path)
    code = library_of(path)
    assert sorted(files(directory)) == sorted((path.name, code.name))
    assert (written.spec, written.library) == (SPEC.name, code.name)
    assert written.target == manifest.LibraryTarget("llvm", (HOST.arch,))
    assert written.sha256 == manifest.file_sha256(code)
    assert written.alignment == 64
    # The compiler extra brings what links for older systems than this one.
    assert written.glibc == elf.read(code.read_bytes()).glibc_text
    assert elf.parse_version(written.glibc) <= elf.PORTABLE_GLIBC
    assert list(written.entries) == list(operations_of(SPEC, kind="llvm"))
    exported = {f"__tvm_ffi_{entry['llvm']}" for entry in written.entries.values()}
    assert exported <= set(elf.read(code.read_bytes()).defined)
    assert written.natc == natc.__version__
    assert written.schedule[HOST.arch] == {"origin": "untuned", "decisions": {}}
    assert {"natc", "tvm", "tvm_ffi"} <= set(written.versions)
    assert all(written.versions.values())
    assert written.built_at.startswith("20")
    assert "untuned" in content["notes"][0]
    assert f"natc tune --kernel 3 --target {HOST.name} --head-dim 8" in content["notes"][0]


def test_building_again_gives_the_same_library(make: Any, directory: Path) -> None:
    schedules.save_schedule(make_host_schedule(SPEC))
    first, code = make(), files(directory)
    second = make()
    for content in (first, second):
        del content["built_at"], content["checksum"]
    assert first == second
    name = first["library"]
    assert files(directory)[name] == code[name]


# Which schedule


def test_a_tuned_schedule_is_used(make: Any) -> None:
    schedules.save_schedule(make_host_schedule(SPEC))
    content = make()
    used = content["schedule"][HOST.arch]
    assert (used["origin"], used["decisions"], used["of"]) == ("tuned", HOST_DECISIONS, SPEC.name)
    assert used["space"] == msgspec.to_builtins(make_host_schedule(SPEC).space)
    assert content["notes"] == [
        f"{SPEC.name} for {HOST.name}: its tuned schedule of 2026-01-02T03:04:05Z."
    ]
    untuned = make(untuned=True)
    assert untuned["schedule"][HOST.arch]["origin"] == "untuned"
    assert "as asked" in untuned["notes"][0]
    assert untuned["sha256"] != content["sha256"]


@pytest.mark.parametrize(("tuned", "wanted"), [(SPEC, WITH_RPB), (WITH_RPB, SPEC)], ids=str)
def test_a_schedule_is_borrowed_from_the_kernel_with_or_without_bias(
    make: Any, tuned: KernelSpec, wanted: KernelSpec
) -> None:
    schedules.save_schedule(make_host_schedule(tuned))
    content = make(wanted)
    used = content["schedule"][HOST.arch]
    assert (used["origin"], used["of"]) == ("borrowed", tuned.name)
    assert used["decisions"] == HOST_DECISIONS
    assert f"the schedule tuned for {tuned.name}" in content["notes"][0]
    attend(wanted)
    wider = KernelSpec.parse("na2d_k3_d16_float32")
    assert make(wider)["schedule"][HOST.arch]["origin"] == "untuned"


@pytest.mark.parametrize(
    "change", [{"version": 0}, {"version": 99}, {"name": "cpu_other"}], ids=str
)
def test_a_schedule_of_another_space_is_not_used_and_a_note_says_so(
    make: Any, change: Any
) -> None:
    space = space_for(HOST)
    old = SpaceVersion(**({"name": space.name, "version": space.version} | change))
    schedules.save_schedule(make_host_schedule(SPEC, space=old, decisions={"gone": 1}))
    content = make()
    assert content["schedule"][HOST.arch]["origin"] == "untuned"
    note = content["notes"][0]
    assert f"design space {old.name} version {old.version}" in note
    assert f"this natc has {space.name} version {space.version}" in note


def test_a_schedule_of_a_newer_natc_stops_the_build(make: Any, directory: Path) -> None:
    path = schedules.save_schedule(make_host_schedule(SPEC))
    edit_json(path, schema_version=99)
    with pytest.raises(ScheduleError, match="newer natc.*install a newer checkout"):
        make()
    assert files(directory) == {}


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"colour": 1}, "decision colour is not of space"),
        ({"lanes": 5}, "decision lanes is 5; space .* allows 4, 8, 1"),
    ],
)
@pytest.mark.parametrize("spec", [SPEC, WITH_RPB], ids=str)
def test_a_decision_that_the_space_lacks_stops_the_build(
    make: Any, directory: Path, spec: KernelSpec, decisions: dict[str, int], message: str
) -> None:
    path = schedules.save_schedule(make_host_schedule(SPEC, decisions=decisions))
    with pytest.raises(ScheduleError, match=message) as error:
        make(spec)
    assert str(path) in str(error.value)
    assert files(directory) == {}
    make(spec, untuned=True)


def test_committed_schedules_have_the_current_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    committed = Path(__file__).parents[2]
    monkeypatch.setenv("NATC_WORKSPACE", str(committed))
    listings = [item for item in schedules.list_schedules() if committed in item.path.parents]
    assert listings
    for listed in listings:
        assert listed.schedule is not None, listed.problem
        kernel = KernelSpec.parse(listed.schedule.spec)
        space = space_for(Target.parse(listed.schedule.target), listed.schedule.operation, kernel)
        assert listed.schedule.space == SpaceVersion(space.name, space.version), listed.path


def test_kernels_of_the_committed_schedules_are_right(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATC_WORKSPACE", str(Path(__file__).parents[2]))
    for listed in schedules.list_schedules():
        assert listed.schedule is not None, listed.problem
        target = Target.parse(listed.schedule.target)
        if not target.runs_on(HOST):
            continue
        spec = KernelSpec.parse(listed.schedule.spec)
        path = build.build_library(spec, target, place / "lib", operations=("forward_lse",))
        assert json.loads(path.read_text())["schedule"][target.arch]["origin"] == "tuned"
        inputs = inputs_of(spec, (2, 16, 11, 2))
        function = open_entry(path, "forward_lse")
        result = call_forward(function, inputs, scale=0.2, dilation=(2, 1), with_lse=True)
        check_forward(result, inputs, spec.kernel_size, scale=0.2, dilation=(2, 1))


# What goes wrong


def test_what_cannot_be_built_is_refused_before_anything_is_written(place: Path) -> None:
    unequal, double = KernelSpec.parse("na2d_k3_d8v4_float32"), KernelSpec.make(3, dtype="float64")
    weaker = Target("llvm", "aarch64" if HOST.arch != "aarch64" else "x86-64-v2")
    gpu = Target("cuda", "sm_90")
    targets = "target is .*; a library is for one CPU target, or for one or more CUDA"
    (place / "file").write_text("")
    for spec, target, options, message in (
        (unequal, HOST, {"families": ["sideways"]}, "is sideways; it must be some of forward, ba"),
        (unequal, HOST, {"families": ["unfused"]}, "na2d_k3_d8v4_float32 has forward, backward"),
        (unequal, HOST, {"families": []}, "operations is empty"),
        (unequal, HOST, {"operations": ["qk"]}, "is qk; na2d_k3_d8v4_float32 has forward, forwa"),
        (unequal, HOST, {"operations": []}, "operations is empty"),
        (double, gpu, {}, "dtype is float64; kernels for cuda are float32"),
        (SPEC, [], {}, targets),
        (SPEC, [HOST, gpu], {}, targets),
        (SPEC, [weaker, HOST], {}, targets),
    ):
        with pytest.raises(BuildError, match=message):
            build.build_library(spec, target, place / "lib", **options)
    assert not (place / "lib").exists()
    with pytest.raises(NatcError, match=f"{place}/file/lib cannot be created: not a directory"):
        build.build_library(SPEC, HOST, place / "file" / "lib")


def test_no_c_compiler_says_what_to_install(
    make: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("NATC_CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerNotFound, match="no C compiler.*NATC_CC.*pip install ziglang"):
        make()
    assert files(directory) == {}
    # ziglang is enough, and a compiler of the system comes before it.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    here = toolchain.host_machine()
    zig = ["-m", "ziglang", "cc", "-target", f"{here}-linux-gnu.2.28"]
    assert toolchain.find_c_compiler()[1:] == zig
    monkeypatch.undo()
    assert toolchain.find_c_compiler() in (["cc"], ["gcc"], ["clang"])
    # Unless the library is to run on older systems, too.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert toolchain.find_c_compiler(portable=True)[1:] == zig
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert toolchain.find_c_compiler(portable=True) in (["cc"], ["gcc"], ["clang"])


def test_another_machine_needs_a_compiler_that_links_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = "aarch64" if toolchain.host_machine() == "x86_64" else "x86_64"
    monkeypatch.delenv("NATC_CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: name if name == "cc" else None)
    message = f"no C compiler for {machine}.*{machine}-linux-gnu-gcc"
    with pytest.raises(CompilerNotFound, match=message):
        toolchain.find_c_compiler(machine)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert toolchain.find_c_compiler(machine)[-1] == f"{machine}-linux-gnu.2.28"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/nowhere/cc -O3", "NATC_CC is '/nowhere/cc -O3', and there is no program '/nowhere/cc'"),
        ("cc 'unfinished", "is not a command: no closing quotation"),
        ("  ", "there is no program"),
    ],
)
def test_a_missing_c_compiler_is_named(
    make: Any, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("NATC_CC", command)
    with pytest.raises(CompilerNotFound, match=message):
        make()


def test_the_c_compiler_gets_the_options_in_natc_cc(
    make: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (compiler,) = toolchain.find_c_compiler()
    script = place / "cc.sh"
    script.write_text(f'#!/bin/sh\necho "$@" >> {place}/arguments\nexec {compiler} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("NATC_CC", f"{script} -O1 -DOPTION")
    make()
    arguments = (place / "arguments").read_text().splitlines()
    assert arguments and all(line.startswith("-O1 -DOPTION ") for line in arguments)
    attend()


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
def test_the_compiler_of_the_ziglang_package_is_enough(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATC_CC", f"{sys.executable} -m ziglang cc")
    make()
    output = attend()
    query, key, value, _ = make_inputs((1, 6, 5, 2, 8))
    torch.testing.assert_close(output, neighborhood_attention(query, key, value, 3))


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
def test_ziglang_links_for_this_system_without_building_a_c_library(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NATC_CC", f"{sys.executable} -m ziglang cc")
    source = place / "one.c"
    source.write_text(
        "#include <math.h>\n#include <pthread.h>\n"
        "double hidden(double x) { return exp(x); }\n"
        "double one(double x) { return pthread_self() ? hidden(x) : 0; }\n"
    )
    library = place / "one.so"
    c_compiler.link_library(library, [source], exported=["one"], directory=place)
    function = ctypes.CDLL(str(library)).one
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    assert function(0.0) == 1.0
    parsed = elf.read(library.read_bytes())
    assert parsed.defined == ("one",) and parsed.needed
    # Each symbol of the system has the version that the system has.
    versions = {symbol.name: symbol.version for symbol in parsed.undefined}
    assert versions["exp"] and versions["pthread_self"]
    kept = [path for path in (place / "cache" / "zig").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 1_000_000


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
def test_ziglang_needs_no_home_that_it_can_write_to(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    for name in ("XDG_CACHE_HOME", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR", "NATC_CC"):
        monkeypatch.delenv(name, raising=False)
    source = place / "one.c"
    source.write_text("int one(void) { return 1; }\n")
    library = place / "one.so"
    c_compiler.link_library(library, [source], exported=["one"], directory=place, portable=True)
    assert ctypes.CDLL(str(library)).one() == 1
    assert (place / "cache" / "zig").is_dir() and (place / "zig").is_dir()
    # Nor a cache of natc's that can be written.
    (place / "file").write_text("")
    monkeypatch.setenv("NATC_CACHE_DIR", str(place / "file" / "cache"))
    kept = str(place / "zig-global")
    assert c_compiler.zig_caches(place)["ZIG_GLOBAL_CACHE_DIR"] == kept
    # The user's own setting wins.
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", "mine")
    assert list(c_compiler.zig_caches(place)) == ["ZIG_LOCAL_CACHE_DIR"]


def test_a_library_shows_its_functions_and_nothing_else(make: Any, directory: Path) -> None:
    make(operations=("forward", "forward_lse"))
    shown = ctypes.CDLL(str(library_of(directory / f"{SPEC.name}.{HOST.name}.json")))
    for name in ("forward", "forward_lse"):
        assert getattr(shown, f"__tvm_ffi_{manifest.function_name(SPEC, name, HOST)}")
    # Every library has these names, so another library could overwrite them.
    for name in ("__TVMBackendParallelLaunch", "gomp_parallel", "parallel_launch"):
        with pytest.raises(AttributeError, match="undefined symbol"):
            getattr(shown, name)


def test_a_c_compiler_that_fails_leaves_the_old_library(
    make: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    expected, before = attend(), files(directory)
    schedules.save_schedule(make_host_schedule(SPEC))
    monkeypatch.setenv("NATC_CC", "/bin/false")
    with pytest.raises(BuildError, match="false ended with 1"):
        make()
    script = directory.parent / "cc.sh"
    script.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv("NATC_CC", str(script))
    with pytest.raises(BuildError, match="cc.sh ended with 3.\nout of luck"):
        make()
    assert files(directory) == before
    runtime.clear()
    assert torch.equal(attend(), expected)


def test_a_library_is_replaced_while_it_is_in_use(make: Any) -> None:
    families = ("forward", "backward")
    make(families=families)
    expected = attend()
    schedules.save_schedule(make_host_schedule(SPEC))
    make(families=families)
    assert torch.equal(attend(), expected)  # the old code, until this process searches again
    # A kernel of the library that was not called before comes from the new library.
    query, key, value, _ = make_inputs((1, 6, 5, 2, 8), requires_grad=True)
    natc.na2d(query, key, value, 3).sum().backward()
    assert query.grad is not None
    runtime.clear()
    torch.testing.assert_close(attend(), expected)


@tvm.ir.instrument.pass_instrument
class Asked:
    """Notes the passes that run."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def run_before_pass(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        self.names.append(str(info.name))


@pytest.mark.parametrize("operation", ["forward_lse", "d_key", "inverse_av"])
def test_passes_that_are_left_to_llvm_change_no_machine_code(
    operation: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = KernelSpec.make(3, head_dim=8, rpb=True)
    module = lower.entry_module(spec, HOST, {}, {operation: operation})
    codes = []
    for passes in (lower._LEFT_TO_LLVM, ()):
        monkeypatch.setattr(lower, "_LEFT_TO_LLVM", passes)
        asked: list[str] = []
        with tvm.transform.PassContext(instruments=[lower.StageSizesKnown(), Asked(asked)]):
            compiled = tvm.compile(module, target=lower.compiler_target(HOST))
        ran = {"tirx.RemoveNoOp", "s_tir.HoistIfThenElse"} & set(asked)
        assert len(ran) == (0 if passes else 2)
        compiled.mod.write_to_file(str(place / "kernel.o"), "o")
        codes.append((place / "kernel.o").read_bytes())
    assert codes[0] == codes[1]
