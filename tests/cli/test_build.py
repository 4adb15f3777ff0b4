"""What `natc build` asks for and shows; compiling itself is scripted."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from support.builder_double import Builder
from support.command_line import Natc
from support.library_files import library_of

from natc import runtime
from natc.cli.verbs import quickstart
from natc.errors import CompilerNotFound
from natc.host.detect import detect_host_cpu
from natc.operations import FAMILIES, operations_of
from natc.runtime.commands import build_command
from natc.spec import KernelSpec
from natc.targets import Target

pytestmark = pytest.mark.quick


def test_both_variants_are_built_into_the_cache(natc: Natc, builder: Builder, place: Path) -> None:
    code, out, err = natc("build", "--kernel", "7")
    host, where = detect_host_cpu().name, place / "cache" / "lib"
    assert code == 0
    assert builder.asked == [
        ("na2d_k7_d32_float32_rpb", [host], where),
        ("na2d_k7_d32_float32", [host], where),
    ]
    assert builder.families == [FAMILIES, FAMILIES]
    library = library_of(where / f"na2d_k7_d32_float32_rpb.{host}.json")
    level = host.removeprefix("llvm-")
    assert f"built {library} (forward, backward, unfused; {level}; 7 bytes)" in out
    assert "note: na2d_k7_d32_float32 was never tuned: built untuned" in err
    assert "NATC_LIB_PATH" not in out
    # A --value-dim that equals --head-dim names the same kernels as none.
    words = ("build", "--kernel", "7", "--value-dim", "32", "-o", str(place / "lib"))
    document = natc.json(*words)
    assert document["directory"] == str(place / "lib")
    specs = [row["manifest"]["spec"] for row in document["built"]]
    assert specs == [name for name, *_ in builder.asked[:2]]
    assert document["built"][0]["notes"]


def test_an_output_directory_comes_with_its_use(
    natc: Natc, builder: Builder, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    code, out, _ = natc("build", "--kernel", "7x5", "--no-rpb", "-o", "my lib")
    assert code == 0
    assert [asked[0] for asked in builder.asked] == ["na2d_k7x5_d32_float32"]
    assert f"export NATC_LIB_PATH='{place}/my lib'" in out
    monkeypatch.setenv("NATC_LIB_PATH", f"{place}/my lib")
    (row,) = natc.json("list")["libraries"]
    assert row["spec"] == "na2d_k7x5_d32_float32"


def test_one_cuda_library_holds_every_architecture(natc: Natc, builder: Builder) -> None:
    code, out, _ = natc("build", "-k", "7", "--rpb", "--target", "cuda", "--arch", "sm_90,sm_80")
    assert code == 0
    assert [asked[:2] for asked in builder.asked] == [
        ("na2d_k7_d32_float16_rpb", ["cuda-sm_80", "cuda-sm_90"])
    ]
    assert "sm_80, sm_90; 7 bytes)" in out


def test_a_library_holds_the_asked_operations(natc: Natc, builder: Builder, place: Path) -> None:
    words = ["build", "--kernel", "7", "--no-rpb", "--operations", "unfused, forward"]
    assert "(forward, unfused; " in natc(*words).out
    assert builder.families == [("forward", "unfused")]
    assert "forward, unfused" in natc("list").out
    (row,) = natc.json("doctor")["libraries"]
    assert row["operations"] == ["forward", "unfused"]


NAMES = [
    "na1d_k7_d32_float32",
    "na1d_k13_d12_bfloat16",
    "na2d_k7_d32_float16",
    "na2d_k7x5_d32v8_float32",
    "na3d_k3_d32_float32",
    "na3d_k7x5x3_d20v24_float16",
]
TARGETS = [detect_host_cpu(), Target("llvm", "x86-64-v2"), Target("cuda", "sm_90")]
COMMANDS = [(name, target) for name in NAMES for target in TARGETS]
COMMANDS.append(("na2d_k7_d32_float64", TARGETS[0]))  # which cuda has no kernels of


@pytest.mark.parametrize(("name", "target"), COMMANDS, ids=str)
@pytest.mark.parametrize("families", [FAMILIES, ("forward",), ("forward", "backward")])
def test_the_command_that_messages_name_builds_that_very_kernel(
    natc: Natc, builder: Builder, name: str, target: Target, families: tuple[str, ...]
) -> None:
    spec = KernelSpec.parse(name)
    command = shlex.split(build_command(spec, [target], families))
    assert natc(*command[1:], "--no-rpb").code == 0
    assert [asked[:2] for asked in builder.asked] == [(name, [target.name])]
    assert operations_of(spec, builder.families[0]) == operations_of(spec, families)


def test_missing_c_compiler(natc: Natc, monkeypatch: pytest.MonkeyPatch, builder: Builder) -> None:
    def none(*_: object, **__: object) -> Path:
        raise CompilerNotFound("there is no C compiler: pip install ziglang.")

    monkeypatch.setattr(sys.modules["natc.compiler.build"], "build_library", none)
    error = natc.refused("build", "--kernel", "7", code=1)
    assert error == "natc: error: there is no C compiler: pip install ziglang.\n"


def test_quickstart_keeps_a_librarys_families(natc: Natc, builder: Builder, place: Path) -> None:
    natc("build", "--kernel", "7", "--rpb", "--operations", "backward")
    where, host = place / "cache" / "lib", detect_host_cpu()
    runtime.clear()
    kept = quickstart.families_to_build(KernelSpec.make(7, rpb=True), host, where)
    assert kept == ("forward", "backward")
    assert quickstart.families_to_build(KernelSpec.make(7), host, where) == ("forward",)
