"""Finding, choosing, verifying and loading libraries, with every way that it can go wrong."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.c_library import HEAD_DIM, KERNEL_SIZE, SPECS, LibraryDirectory, compile_c
from support.library_files import edit_json, library_of, make_manifest, rewrite

import natc
from natc import runtime
from natc.checks.inputs import make_inputs
from natc.errors import LibraryError, TargetError
from natc.host.detect import detect_host_cpu
from natc.runtime import Choice, Facts, Library, load, registry, select
from natc.runtime.commands import build_command, rebuild_command
from natc.spec import KernelSpec
from natc.store import manifest
from natc.targets import CUDA_ARCHS, LLVM_ARCHS, Target, cuda_target_for

pytestmark = pytest.mark.quick

SPEC = SPECS[False]
SHAPE = (1, 5, 6, 2, HEAD_DIM)
VERSION = f": {manifest.SCHEMA_VERSION},"


def described(spec: KernelSpec, kind: str, archs: tuple[str, ...], **changes: Any) -> Any:
    return make_manifest(spec, manifest.LibraryTarget(kind, archs), **changes)


def library(folder: Path, spec: KernelSpec, kind: str, *archs: str, **changes: Any) -> Library:
    """A library that exists as far as a choice looks."""
    folder.mkdir(exist_ok=True)
    content = described(spec, kind, archs, **changes)
    (folder / content.library).touch()
    return Library(content, folder / f"{content.name}.json")


def attend() -> torch.Tensor:
    query, key, value, _ = make_inputs(SHAPE)
    return natc.na2d(query, key, value, KERNEL_SIZE)


# Manifests


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = described(
        SPEC,
        "cuda",
        ("sm_80", "sm_90"),
        schedule={"decisions": {"tile": 4}},
        versions={"tvm": "1"},
    )
    path = tmp_path / f"{written.name}.json"
    path.write_text(manifest.dump(written))
    assert manifest.load_manifest(path) == written
    assert manifest.dump(manifest.load_manifest(path)) == path.read_text()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", manifest.SCHEMA_VERSION + 1, "newer natc.*install a newer checkout"),
        ("schema_version", 0, "schema_version 0"),
        ("schema_version", 1, "older natc built the library of na2d_k3_d8_float32.*natc build"),
        ("schema_version", "1", "schema_version"),
        ("spec", "na2d_k7", "'na2d_k7' is not the name of a kernel"),
        ("spec", "na2d_k0_d32_float32", "kernel_size 0"),
        ("target", {"kind": "llvm", "archs": ["x86-64-v9"]}, "'x86-64-v9' is unknown"),
        ("target", {"kind": "tpu", "archs": ["v5"]}, "'tpu' is unknown"),
        ("target", {"kind": "llvm", "archs": []}, "at least one architecture"),
        ("library", "../evil.so", "library '../evil.so' must be na2d_k3_d8_float32.llvm-x86-64-v"),
        ("library", None, "library must be a JSON str"),
        ("sha256", "abc", "64 lower-case hexadecimal"),
        ("entries", {}, "at least one operation"),
        ("entries", {"forward": {"llvm": "f"}}, "entries.forward must be {'llvm': 'na2d_k3_d8_"),
        ("entries", {"forward": None}, "entries.forward must be"),
        ("entries", {"d_rpb": {"llvm": "f"}}, "entries names d_rpb, which na2d_k3_d8_float32 do"),
        ("alignment", 16, "alignment 16 must be 64"),
        ("ptx", "sm_80", "ptx 'sm_80' must be one of target.archs"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, field: str, value: Any, message: str) -> None:
    written = described(SPEC, "llvm", ("x86-64-v3",))
    path = tmp_path / f"{written.name}.json"
    path.write_text(manifest.dump(written))
    edit_json(path, **{field: value})
    with pytest.raises(LibraryError, match=message) as error:
        manifest.load_manifest(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(LibraryError, match=f"manifest {path} is not valid"):
        manifest.load_manifest(path)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="no such file"):
        manifest.load_manifest(tmp_path / "none.json")


# Choosing: a pure function, so no hardware is needed


@pytest.mark.parametrize("made_for", LLVM_ARCHS)
@pytest.mark.parametrize("machine", LLVM_ARCHS)
def test_cpu_code_runs_on_its_own_level_and_above(
    tmp_path: Path, made_for: str, machine: str
) -> None:
    facts = Facts("cpu", Target("llvm", machine))
    choice, rejections = select([library(tmp_path, SPEC, "llvm", made_for)], SPEC, facts)
    x86 = LLVM_ARCHS[:3]
    if made_for == machine or (
        made_for in x86 and machine in x86 and x86.index(made_for) < x86.index(machine)
    ):
        assert (
            choice is not None
            and choice.function.startswith(f"{SPEC}_forward_")
            and not rejections
        )
    else:
        assert choice is None
        assert f"made for llvm-{made_for}, which does not run on" in rejections[0].reason


@pytest.mark.parametrize(
    ("archs", "ptx", "capability", "chosen"),
    [
        (("sm_80", "sm_90"), "", (9, 0), "sm_90"),
        (("sm_80", "sm_86", "sm_89"), "", (8, 6), "sm_86"),
        (("sm_80", "sm_86"), "", (8, 9), "sm_86"),
        (("sm_86", "sm_80"), "", (8, 9), "sm_86"),
        (("sm_89",), "", (8, 6), None),
        (("sm_80", "sm_90"), "", (10, 0), None),
        (("sm_100",), "", (10, 3), "sm_100"),
        (("sm_80",), "", (8, 7), None),
        (("sm_90",), "", (12, 0), None),
        # The driver of a newer GPU compiles PTX, even for a GPU that natc does not know.
        (("sm_80", "sm_90"), "sm_90", (9, 0), "sm_90"),
        (("sm_80", "sm_90"), "sm_90", (12, 0), "sm_90"),
        (("sm_80", "sm_90"), "sm_90", (13, 0), "sm_90"),
        (("sm_80", "sm_90"), "sm_90", (8, 6), "sm_80"),
        (("sm_80", "sm_90"), "sm_90", (7, 5), None),
    ],
)
def test_gpu_code_runs_within_its_major_version_and_ptx_on_newer_gpus(
    tmp_path: Path, archs: tuple[str, ...], ptx: str, capability: tuple[int, int], chosen: str
) -> None:
    try:
        facts = Facts("cuda:0", cuda_target_for(capability), "", capability)
    except TargetError as error:
        facts = Facts("cuda:0", None, str(error), capability)
    choice, rejections = select([library(tmp_path, SPEC, "cuda", *archs, ptx=ptx)], SPEC, facts)
    assert (choice and choice.target.arch) == chosen
    if choice is None:
        (rejection,) = rejections
        made_for = f"made for {', '.join(f'cuda-{arch}' for arch in archs)}, which does not run on"
        assert rejection.reason.startswith(
            made_for if facts.machine else facts.problem.rstrip(".")
        )


def test_code_of_the_machine_goes_before_ptx(tmp_path: Path) -> None:
    libraries = [library(tmp_path, SPEC, "cuda", arch, ptx=arch) for arch in ("sm_90", "sm_120")]
    facts = Facts("cuda:0", Target("cuda", "sm_120"), capability=(12, 0))
    choice, _ = select(libraries, SPEC, facts)
    assert choice is not None and choice.target.arch == "sm_120"


def test_the_newest_code_of_the_first_directory_wins(tmp_path: Path) -> None:
    facts = Facts("cpu", Target("llvm", "x86-64-v4"))
    first = [
        library(tmp_path / "a", SPEC, "llvm", "x86-64-v2"),
        library(tmp_path / "a", SPEC, "llvm", "x86-64-v3"),
    ]
    second = library(tmp_path / "b", SPEC, "llvm", "x86-64-v4")
    choice, rejections = select([*first, second], SPEC, facts)
    assert choice is not None and choice.library is first[1]
    assert {item.path for item in rejections} == {first[0].manifest_path, second.manifest_path}


def test_every_library_that_does_not_fit_says_why(tmp_path: Path) -> None:
    facts = Facts("cpu", Target("llvm", "x86-64-v4"))
    biased = library(tmp_path, SPECS[True], "llvm", "x86-64-v3")
    gpu = library(tmp_path, SPEC, "cuda", "sm_90", ptx="sm_90")
    gone = library(tmp_path, SPEC, "llvm", "x86-64-v2")
    gone.path.unlink()
    choice, rejections = select([biased, gpu, gone], SPEC, facts)
    assert choice is None
    assert [item.reason for item in rejections] == [
        f"implements {SPECS[True]}",
        "made for cuda-sm_90, which does not run on llvm-x86-64-v4",
        f"library file {gone.path} is missing",
    ]
    choice, rejections = select([biased], SPECS[True], facts, operation="forward_lse")
    assert choice is None and rejections[0].reason == "has no forward_lse, only forward"
    for glibc, reason in (
        (None, None),
        ((2, 28), None),
        ((2, 17), "needs glibc 2.28 or newer, and this system has 2.17"),
        ((0,), "needs glibc 2.28 or newer, and this system has none"),
    ):
        newer = library(tmp_path, SPECS[True], "llvm", "x86-64-v3", glibc="2.28")
        choice, rejections = select([newer], SPECS[True], replace(facts, glibc=glibc))
        assert [item.reason for item in rejections] == ([reason] if reason else [])
        assert (choice is None) == (reason is not None)
    nowhere = Facts("mps", None, "natc compiles nothing for it.")
    choice, rejections = select([biased], SPECS[True], nowhere)
    assert choice is None and rejections[0].reason == "natc compiles nothing for it"


# Commands in messages


@pytest.mark.parametrize(
    ("spec", "targets", "command"),
    [
        (KernelSpec.make(7), [detect_host_cpu()], "natc build --kernel 7 --target llvm"),
        (
            KernelSpec.make((7, 5), head_dim=64, dtype="bfloat16", rpb=True),
            [Target("llvm", "aarch64")],
            "natc build --kernel 7x5 --head-dim 64 --dtype bfloat16 --target llvm-aarch64",
        ),
        (
            KernelSpec.make(13, rank=1, dtype="float16"),
            [Target("cuda", arch) for arch in CUDA_ARCHS[:2]],
            "natc build --kernel 13 --rank 1 --target cuda --arch sm_80,sm_86",
        ),
    ],
)
def test_the_command_that_builds_a_kernel(
    spec: KernelSpec, targets: list[Target], command: str
) -> None:
    if targets == [Target("llvm", "aarch64")] and detect_host_cpu() == targets[0]:
        command = command.replace("llvm-aarch64", "llvm")
    assert build_command(spec, targets) == command


def test_the_command_that_builds_a_library_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = library(tmp_path / "lib", SPEC, "cuda", "sm_80", "sm_90")
    assert rebuild_command(built).endswith(f"--target cuda --arch sm_80,sm_90 -o {tmp_path}/lib")
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path))
    assert rebuild_command(built).endswith("--target cuda --arch sm_80,sm_90")


# Loading


def test_nothing_is_opened_before_a_call(
    kernels: LibraryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_open", lambda library, file: pytest.fail(f"opened {library.path}"))
    assert [item.spec for item in runtime.kernels()] == [SPECS[False], SPECS[True]]
    explanation = runtime.explain(SPEC)
    assert explanation.choice is not None
    assert f"searched {kernels.path}" in str(explanation)
    assert str(explanation.choice.library.path) in str(explanation)


def test_a_library_that_changed_is_not_run(libraries: LibraryDirectory) -> None:
    path = libraries.add(SPEC)
    changed = runtime.kernels()[0]
    data = bytearray(changed.path.read_bytes())
    data[len(data) // 2] ^= 1
    changed.path.write_bytes(data)
    for _ in range(2):  # The second call must not slip through either.
        with pytest.raises(LibraryError) as error:
            attend()
    for part in (
        str(changed.path),
        changed.manifest.sha256,
        manifest.file_sha256(changed.path),
        f"natc build --kernel {KERNEL_SIZE} --head-dim {HEAD_DIM} --operations forward "
        f"--target llvm -o {path.parent}",
    ):
        assert part in str(error.value)
    with pytest.raises(LibraryError, match="expected"):
        runtime.verify(changed)


def test_a_library_that_cannot_be_opened_is_named(libraries: LibraryDirectory) -> None:
    path = rewrite(libraries.add(SPEC), b"not machine code")
    with pytest.raises(LibraryError, match=f"library {library_of(path)} cannot be opened"):
        attend()


def test_a_function_that_is_not_there_is_named(libraries: LibraryDirectory) -> None:
    rewrite(libraries.add(SPECS[True]), spec=SPEC.name)
    with pytest.raises(LibraryError, match=f"no function '{SPEC}_forward_.*natc build"):
        attend()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("{"), "is not valid"),
        (
            lambda path: path.write_text(path.read_text().replace(VERSION, ": 99,", 1)),
            "written by a newer natc",
        ),
        (
            lambda path: path.write_text(path.read_text().replace(VERSION, ": 1,", 1)),
            "an older natc built the library",
        ),
        (lambda path: library_of(path).unlink(), "is missing"),
    ],
    ids=["corrupt manifest", "newer manifest", "older manifest", "missing library"],
)
def test_what_is_bad_is_passed_over_and_said(
    libraries: LibraryDirectory, damage: Any, message: str
) -> None:
    path = libraries.add(SPEC)
    libraries.add(SPECS[True])
    damage(path)
    with pytest.warns(natc.NatcFallbackWarning, match=f"passed over {path}.*{message}"):
        attend()
    assert message in str(runtime.explain(SPEC))
    query, key, value, rpb = make_inputs(SHAPE, kernel_size=KERNEL_SIZE)
    natc.na2d(query, key, value, KERNEL_SIZE, rpb=rpb)
    assert libraries.calls(SPECS[True]) == 1, "a bad neighbour hides no good library"


def test_what_keeps_a_call_from_building_is_said(
    libraries: LibraryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATC_JIT", "on")
    monkeypatch.setattr("natc.runtime.jit.unavailable", lambda target: "nvcc was not found")
    message = "Build it: natc build --kernel 3 .*[.] This call did not: nvcc was not found"
    with pytest.warns(natc.NatcFallbackWarning, match=message):
        attend()


def test_a_library_for_another_machine_is_passed_over(libraries: LibraryDirectory) -> None:
    host = detect_host_cpu().arch
    arch = "aarch64" if host != "aarch64" else "x86-64-v2"
    libraries.add(SPEC, Target("llvm", arch))
    with pytest.warns(natc.NatcFallbackWarning, match=f"made for llvm-{arch}"):
        attend()


def test_a_new_build_is_used_after_clear(libraries: LibraryDirectory, tmp_path: Path) -> None:
    libraries.add(SPEC)
    before = attend()
    doubled = compile_c(SPEC, tmp_path / "doubled.so", factor=2)
    LibraryDirectory(libraries.path, {False: doubled}).add(SPEC)
    torch.testing.assert_close(attend(), before, rtol=0, atol=0)
    runtime.clear()
    torch.testing.assert_close(attend(), 2 * before)


def test_threads_that_come_first_together_load_once(
    kernels: LibraryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Choice] = []
    monkeypatch.setattr(registry, "load", lambda choice: loads.append(choice) or load.load(choice))
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: (barrier.wait(), attend())[1], range(8)))
    assert len(loads) == 1
    assert all(torch.equal(result, results[0]) for result in results)


def test_problems_are_listed(libraries: LibraryDirectory) -> None:
    libraries.add(SPEC)
    bad = libraries.path / "bad.json"
    bad.write_text("{")
    (libraries.path / ".unfinished.json").write_text("{")
    runtime.clear()
    assert [item.path for item in runtime.problems()] == [bad]
    assert [kernel.spec for kernel in runtime.kernels()] == [SPEC]


def test_the_operations_of_a_library_are_independent(libraries: LibraryDirectory) -> None:
    libraries.add(SPEC, operations=("forward",))
    query, key, value, _ = make_inputs(SHAPE)
    natc.na2d(query, key, value, KERNEL_SIZE)
    with pytest.warns(natc.NatcFallbackWarning, match="has no forward_lse, only forward"):
        natc.na2d(query, key, value, KERNEL_SIZE, return_lse=True)
    assert libraries.calls(SPEC) == 1
