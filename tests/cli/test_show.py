"""`natc show` and `natc doctor --why`: what serves a call, and why nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.command_line import Natc
from support.library_files import library_of
from support.tiny_library import ARCH, SPEC, add_library
from support.written_files import make_schedule, write_schedule_and_log

from natc.errors import CompilerNotFound
from natc.host import gpu, toolchain
from natc.operations import CALLED_TOGETHER
from natc.spec import KernelSpec
from natc.store import manifest, schedules, workspace
from natc.store.manifest import LibraryTarget

pytestmark = pytest.mark.quick

KERNEL = ("--kernel", "7")


def cuda_library(directory: Path, spec: KernelSpec, archs: tuple[str, ...], ptx: str) -> Path:
    """Put a library for GPUs, which holds no code for them, into a directory."""
    return add_library(directory, spec, target=LibraryTarget("cuda", archs), ptx=ptx)


def reasons(account: Any) -> dict[str, str | None]:
    """Return why each candidate was passed over, by file name; None: it was chosen."""
    return {
        Path(row["path"]).name: None if row["chosen"] else row["reason"]
        for place in account["places"]
        for row in place["candidates"]
    }


def test_without_any_library_the_reference_serves_and_it_says_why(natc: Natc) -> None:
    account = natc.json("show", *KERNEL, code=1)
    assert (account["served_by"], account["library"]) == ("reference", None)
    assert account["why"] == "no library fits, and a call builds none: NATC_JIT is readonly"
    assert account["command"] == "natc build --kernel 7 --target llvm"
    # Kernels that a call built lie in one directory for each family of operations.
    sources = list(dict.fromkeys(place["source"] for place in account["places"]))
    assert sources == [
        "named in the program",
        "NATC_LIB_PATH",
        "wheel",
        "cache",
        "NATC_JIT",
        "natc",
    ]
    assert {row["served_by"] for row in account["operations"]} == {"reference"}
    code, out, err = natc("show", *KERNEL)
    assert (code, err) == (1, "")
    assert "served by: the reference" in out and "NATC_JIT is readonly" in out


def test_with_the_compiler_a_call_builds(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_JIT", "on")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    account = natc.json("show", *KERNEL)
    assert (account["served_by"], account["not_built"]) == ("build", None)
    places = [place["path"] for place in account["places"] if place["source"] == "NATC_JIT"]
    assert places == [str(workspace.jit_dir(group)) for group in CALLED_TOGETHER]


def test_without_nvcc_a_call_builds_nothing(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does `natc show` say so: of a GPU without nvcc, of a CPU without a C compiler."""
    monkeypatch.setenv("NATC_JIT", "on")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    device = gpu.Gpu("A GPU", (8, 9), 2**34)
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("13.0", (device,)))
    words = ("show", *KERNEL, "--target", "cuda")
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: "nvcc")
    assert natc.json(*words)["served_by"] == "build"

    def missing() -> str:
        raise CompilerNotFound("nvcc was not found; install CUDA.")

    monkeypatch.setattr(toolchain, "find_nvcc", missing)
    account = natc.json(*words, code=1)
    reason = "nvcc was not found; install CUDA"
    assert account["served_by"] == "reference"
    assert account["not_built"] == reason
    assert account["why"] == f"no library fits, and a call builds none: {reason}"
    assert reason in natc(*words).out
    cpu, cuda = natc.json("doctor", "--why")["devices"]
    assert (cpu["not_built"], cuda["not_built"]) == (None, reason)
    assert f"calls build no missing kernels: {reason}" in natc("doctor", "--why").out
    assert natc.json("show", *KERNEL)["served_by"] == "build", "which takes no nvcc"
    monkeypatch.setenv("NATC_CC", "/nowhere/cc")
    assert "there is no program '/nowhere/cc'" in natc.json("show", *KERNEL, code=1)["why"]


def test_strict_mode_refuses_missing_kernels(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_STRICT", "1")
    account = natc.json("show", *KERNEL, code=1)
    assert account["served_by"] == "refused"
    assert "NATC_STRICT forbids the reference" in account["why"]


def test_first_directory_wins(natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_LIB_PATH", str(place / "mine"))
    chosen = add_library(place / "mine")
    second = add_library(workspace.library_dir())
    narrower = add_library(workspace.library_dir(), replace(SPEC, head_dim=16, value_dim=16))
    (workspace.library_dir() / "damaged.json").write_text("{")
    cuda_library(place / "mine", KernelSpec.make(5, rpb=True), ("sm_90",), "")

    account = natc.json("show", *KERNEL)
    library = library_of(chosen)
    assert account["served_by"] == "library"
    assert account["library"] == str(library)
    assert account["code_for"] == f"llvm-{ARCH}"
    mine, cache = (
        next(row for row in account["places"] if row["source"] == source)
        for source in ("NATC_LIB_PATH", "cache")
    )
    assert [row["chosen"] for row in mine["candidates"]] == [True, False]
    assert mine["candidates"][1]["differs_in"] == ["kernel_size 5"]
    rows = {row["path"]: row for row in cache["candidates"]}
    same, different = (rows[str(library_of(path))] for path in (second, narrower))
    assert same["reason"] == f"{chosen} is newer or comes first" and same["differs_in"] == []
    assert "implements na2d_k7_d16" in different["reason"]
    assert different["differs_in"] == ["head_dim 16"]
    assert "is not valid" in str(reasons(account)["damaged.json"])
    assert account["holds"]["operations"] == ["forward"]

    # Only the forward is in the library.
    served = {row["operation"]: row["served_by"] for row in account["operations"]}
    assert (served["forward"], served["d_query"]) == ("library", "reference")
    text = natc("show", *KERNEL).out
    assert f"served by: {library}" in text
    assert "another kernel (head_dim 16)" in text
    code, out, _ = natc("show", *KERNEL, "--operation", "d_query")
    assert code == 1 and f"{library.name}: has no d_query, only forward" in out


def test_a_kernel_without_bias_serves_operations_that_read_none(natc: Natc) -> None:
    plain = add_library(workspace.library_dir(), replace(SPEC, rpb=False), operations=("av",))
    account = natc.json("show", *KERNEL, "--operation", "av")
    assert account["library"] == str(library_of(plain))
    assert "na2d_k7_d32_float32, " in account["why"]
    assert list(reasons(account).values()) == [None]


def test_a_changed_library_serves_nothing(natc: Natc) -> None:
    library = library_of(add_library(workspace.library_dir()))
    library.write_bytes(b"other code")
    account = natc.json("show", *KERNEL, code=1)
    assert account["served_by"] == "refused"
    assert "is not the file that its manifest vouches for" in account["why"]


def test_a_directory_that_others_can_write_is_passed_over(natc: Natc) -> None:
    add_library(workspace.library_dir())
    workspace.library_dir().chmod(0o777)
    account = natc.json("show", *KERNEL, code=1)
    (row,) = next(p for p in account["places"] if p["source"] == "cache")["candidates"]
    assert "can be written by everyone" in row["reason"]
    assert "passed over: everything: its libraries are not loaded" in natc("show", *KERNEL).out


@pytest.mark.parametrize(
    ("arch", "code_for", "why"),
    [
        ("sm_90", "cuda-sm_90", "code for cuda-sm_90, which is this machine"),
        ("sm_89", "cuda-sm_80", "code for cuda-sm_80, which runs on cuda-sm_89"),
        ("sm_120", "cuda-sm_90", "PTX for cuda-sm_90, which the driver compiles for this GPU"),
    ],
)
def test_any_gpu_may_be_named(natc: Natc, arch: str, code_for: str, why: str) -> None:
    spec = KernelSpec.make(7, dtype="float16", rpb=True)
    cuda_library(workspace.library_dir(), spec, ("sm_80", "sm_90"), "sm_90")
    words = ("show", *KERNEL, "--target", "cuda", "--arch", arch)
    account = natc.json(*words)
    assert (account["device"], account["machine"]) == ("cuda", f"cuda-{arch}")
    assert (account["code_for"], account["why"]) == (code_for, why)
    assert account["holds"]["ptx"] == "sm_90"
    assert "PTX of sm_90 for newer GPUs" in natc(*words).out


def test_this_machines_gpu_is_asked_about(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    device = gpu.Gpu("A GPU", (8, 9), 2**34)
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("13.0", (device,)))
    account = natc.json("show", *KERNEL, "--target", "cuda", code=1)
    assert account["machine"] == "cuda-sm_89"
    assert account["command"] == "natc build --kernel 7 --target cuda --arch sm_89"
    old = gpu.Gpu("An old GPU", (7, 0), 2**34)
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("13.0", (old,)))
    account = natc.json("show", *KERNEL, "--target", "cuda", code=1)
    assert account["machine"] is None and "compute capability 7.0" in account["why"]


def test_combinations_without_kernels_by_design(natc: Natc) -> None:
    words = ("show", *KERNEL, "--dtype", "float64", "--target", "cuda", "--arch", "sm_90")
    account = natc.json(*words, code=1)
    assert account["why"] == "there are no float64 kernels for cuda, by design"


def test_the_schedule_that_a_build_would_use_is_shown(natc: Natc) -> None:
    path, _ = write_schedule_and_log()
    for words in ((), ("--no-rpb",)):
        schedule = natc.json("show", *KERNEL, "--target", "llvm-x86-64-v3", *words, code=1)[
            "schedule"
        ]
        assert schedule["path"] == str(path)
        assert schedule["origin"] == ("borrowed" if words else "tuned")
        assert schedule["decisions"] == {"tile": 1}
        assert schedule["measured"]["speedup"] == pytest.approx(2.0)
    document = natc.json("show", str(path))
    assert (document["kind"], document["spec"]) == ("schedule", SPEC.name)
    assert document["schedule"]["decisions"] == {"tile": 1}
    assert "decisions: tile 1" in natc("show", str(path)).out
    text = natc("show", SPEC.name, "--target", "llvm-x86-64-v3").out
    assert "decisions: tile 1" in text
    assert ["1x56x56x2x32", "1", "ms", "4", "ms", "4.00"] in [s.split() for s in text.splitlines()]


def test_a_predicted_schedule_names_its_model(natc: Natc) -> None:
    prediction = schedules.Prediction(speedup=1.25, model="a model, version 3")
    path = schedules.save_schedule(make_schedule(measured=None, predicted=prediction))
    (row,) = natc.json("list")["schedules"]
    assert (row["speedup"], row["predicted_by"], row["trials"]) == (1.25, prediction.model, None)
    assert "1.25x (predicted)" in natc("list").out
    document = natc.json("show", str(path))["schedule"]
    assert document["origin"] == "predicted" and document["measured"] is None
    assert document["predicted"] == msgspec.to_builtins(prediction)
    assert "a model, version 3 expects it to be 1.25 times" in natc("show", str(path)).out


def test_the_schedule_of_a_library_has_times_if_its_file_is_unchanged(natc: Natc) -> None:
    schedule = make_schedule(target=f"llvm-{ARCH}")
    own = schedules.save_schedule(schedule)
    record = {"origin": "tuned", "of": SPEC.name, "decisions": {"tile": 1}}
    record |= {"space": msgspec.to_builtins(schedule.space), "created": schedule.created}
    add_library(workspace.library_dir(), schedule={ARCH: record})
    shown = natc.json("show", *KERNEL)["schedule"]
    assert shown["path"] == str(own) and shown["measured"]["trials"] == 2

    record["created"] = "2001-02-03T04:05:06+00:00"
    library = library_of(add_library(workspace.library_dir(), schedule={ARCH: record}))
    shown = natc.json("show", *KERNEL)["schedule"]
    assert shown["decisions"] == {"tile": 1} and shown["measured"] is None
    assert "is not here" in natc("show", str(library)).out


def test_each_operation_has_its_own_schedule(natc: Natc) -> None:
    write_schedule_and_log()
    schedule = make_schedule(target=f"llvm-{ARCH}", operation="d_query", decisions={"lanes": 8})
    file = schedules.save_schedule(schedule)
    space = msgspec.to_builtins(schedule.space)
    evidence = {"space": space, "created": schedule.created, "of": SPEC.name}
    record = {
        "origin": "untuned",
        "decisions": {"tile": 0, "d_query.lanes": 8, "d_key.lanes": 4},
        "others": {"d_query": evidence},
    }
    library = add_library(
        workspace.library_dir(),
        schedule={ARCH: record},
        operations=("forward", "d_query", "d_key"),
    )
    words = ("show", *KERNEL, "--operation")
    forward, query, key = (
        natc.json(*words, name)["schedule"] for name in ("forward", "d_query", "d_key")
    )
    assert (forward["origin"], forward["decisions"]) == ("untuned", {"tile": 0})
    assert (query["origin"], query["decisions"]) == ("tuned", {"lanes": 8})
    assert query["path"] == str(file) and query["measured"]["trials"] == 2
    assert (key["origin"], key["decisions"]) == ("untuned", {"lanes": 4})
    document = natc.json("show", str(library))["schedules"]
    assert [entry["operation"] for entry in document] == ["forward", "d_query"]
    # Without the library, natc shows the schedule that a build would use.
    library.unlink()
    place = ("--target", f"llvm-{ARCH}")
    document = natc.json(*words, "d_query", *place, code=1)["schedule"]
    assert (document["origin"], document["path"]) == ("tuned", str(file))
    rows = natc.json("list")["schedules"]
    assert {(row["spec"], row["operation"]) for row in rows} == {
        (SPEC.name, "forward"),
        (SPEC.name, "d_query"),
    }
    assert f"{SPEC.name}.d_query " in natc("list").out


def test_a_library_file_is_shown(natc: Natc, place: Path) -> None:
    path = add_library(place / "lib")
    library = library_of(path)
    for file in (path, library):
        document = natc.json("show", str(file))
        assert (document["kind"], document["spec"]) == ("library", SPEC.name)
        assert document["holds"]["targets"] == [f"llvm-{ARCH}"]
        assert document["runs_here"] is None and document["used"] is None
        assert document["manifest"]["sha256"] == manifest.file_sha256(library)
    out = natc("show", str(library)).out
    assert "runs on this machine: yes" in out and "name its directory in NATC_LIB_PATH" in out
    cached = add_library(workspace.library_dir())
    (use,) = natc.json("show", str(cached))["used"]
    assert use == {"operation": "forward", "device": "cpu", "used": True, "reason": None}

    library.write_bytes(b"other code")
    assert "vouches for" in natc.json("show", str(path), code=1)["problem"]
    path.unlink()
    assert "has no manifest" in natc.refused("show", str(library), code=1)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_other_files_are_refused(natc: Natc, place: Path, text: str) -> None:
    (place / "x.json").write_text(text)
    assert "x.json" in natc.refused("show", str(place / "x.json"))


def test_doctor_says_why(natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_LIB_PATH", str(place / "mine"))
    first = add_library(place / "mine")
    second = add_library(workspace.library_dir())
    spec = replace(SPEC, dtype="float16")
    cuda = cuda_library(place / "mine", spec, ("sm_80",), "sm_80")
    (place / "mine" / "damaged.json").write_text("{")

    document = natc.json("doctor", "--why")
    assert document["jit"] == "readonly"
    rows = {row["library"]: row for place in document["places"] for row in place["libraries"]}
    (use,) = rows[str(library_of(first))]["used"]
    assert use["used"] is True
    (use,) = rows[str(library_of(second))]["used"]
    assert use["reason"] == f"{first} is newer or comes first"
    (use,) = rows[str(library_of(cuda))]["used"]
    assert "no NVIDIA GPU" in use["reason"]
    assert "is not valid" in rows[str(place / "mine" / "damaged.json")]["reason"]
    code, out, err = natc("doctor", "--why")
    assert (code, err) == (0, "")
    assert f"not used: {first} is newer or comes first" in out and "used on cpu" in out

    # The same function answers, whichever verb asks.
    account = natc.json("show", *KERNEL)
    assert reasons(account)[library_of(second).name] in (
        None,
        rows[str(library_of(second))]["used"][0]["reason"],
    )
    assert natc("doctor", "--why", "--coverage").code == 2
