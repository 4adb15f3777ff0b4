from __future__ import annotations

import itertools

import pytest

from natc.errors import TargetError
from natc.host import detect, gpu
from natc.host.detect import parse_target, x86_64_level
from natc.targets import ARCHS, CUDA_ARCHS, Target, cuda_target_for, parse_archs

ALL = [Target(kind, arch) for kind, archs in ARCHS.items() for arch in archs]
V3 = frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "sse4_2"])
V4 = V3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])


@pytest.mark.parametrize("target", ALL, ids=str)
def test_every_name_parses_back(target: Target) -> None:
    assert Target.parse(target.name) == target
    assert Target.parse(target.kind, target.arch) == target


def test_llvm_alone_is_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "detect_host_cpu", lambda: Target("llvm", "aarch64"))
    assert parse_target("llvm").name == "llvm-aarch64"


def test_cuda_alone_is_this_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    h100 = gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30)
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("13.0", (h100,)))
    assert parse_target("cuda").name == "cuda-sm_90"


def test_cuda_without_a_gpu_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver(None, ()))
    with pytest.raises(TargetError, match=r"no NVIDIA GPU.*sm_90.*--arch"):
        parse_target("cuda")


@pytest.mark.parametrize("text", ["", "opencl", "llvm-", "llvm-x86-64-v5", "cuda-sm_75", "CUDA"])
def test_unknown_targets_are_named(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse(text)
    assert repr(text) in str(caught.value)
    assert "cuda-sm_90" in str(caught.value)


@pytest.mark.parametrize("kind", ARCHS)
def test_a_bare_kind_needs_an_architecture(kind: str) -> None:
    with pytest.raises(TargetError, match=f"'{kind}' needs an architecture.*{ARCHS[kind][-1]}"):
        Target.parse(kind)


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(TargetError, match=r"'sm_12'.*sm_80, sm_86"):
        Target.parse("cuda", "sm_12")
    with pytest.raises(TargetError, match=r"'sm_90'.*x86-64-v2"):
        Target.parse("llvm", "sm_90")


@pytest.mark.parametrize(
    ("text", "arch"),
    [
        ("8.0", "sm_80"),
        ("9.0a", "sm_90"),
        ("sm_90a", "sm_90"),
        ("10.0a", "sm_100"),
        ("sm_100f", "sm_100"),
        ("10.3", "sm_103"),
        ("12.0f", "sm_120"),
        # Code for 12.0 is the newest that runs on it.
        ("12.1a", "sm_120"),
        ("sm_121", "sm_120"),
    ],
)
def test_architectures_have_the_names_that_the_field_writes(text: str, arch: str) -> None:
    assert Target.parse("cuda", text) == Target.parse(f"cuda-{text}") == Target("cuda", arch)
    assert parse_target("cuda", text).arch == arch
    assert parse_archs(f"{text}, sm_80,{arch}") == tuple(dict.fromkeys(("sm_80", arch)))


@pytest.mark.parametrize("text", ["7.5", "11.0a", "9.0b", "9", "sm_9", "10.0af", "a", "13.0f"])
def test_a_capability_that_no_code_serves_is_named(text: str) -> None:
    for refused in (lambda: Target.parse("cuda", text), lambda: parse_archs(text)):
        with pytest.raises(TargetError) as caught:
            refused()
        assert repr(text) in str(caught.value)


def test_two_architectures_that_differ_are_refused() -> None:
    assert Target.parse("cuda-sm_90", "sm_90").arch == "sm_90"
    with pytest.raises(TargetError, match="differ"):
        Target.parse("cuda-sm_90", "sm_80")


def test_architectures_are_sorted_by_age_and_listed_once() -> None:
    assert parse_archs("sm_120, sm_90,sm_80,sm_90") == ("sm_80", "sm_90", "sm_120")
    with pytest.raises(TargetError, match="sm_1"):
        parse_archs("sm_80,sm_1")
    with pytest.raises(TargetError, match="no architecture"):
        parse_archs(" , ")


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (frozenset(), "x86-64-v2"),
        (V3, "x86-64-v3"),
        (V3 - {"fma"}, "x86-64-v2"),
        (V4, "x86-64-v4"),
        (V4 - {"avx512vl"}, "x86-64-v3"),
        # AVX-512 without what level 3 asks for is not level 4.
        (V4 - {"bmi2"}, "x86-64-v2"),
    ],
)
def test_cpu_flags_give_the_level(flags: frozenset[str], level: str) -> None:
    assert x86_64_level(flags) == level


@pytest.mark.parametrize("machine", ["arm64", "aarch64"])
def test_arm_is_called_aarch64(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert detect.detect_host_cpu.__wrapped__().name == "llvm-aarch64"


def test_another_cpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(TargetError, match="riscv64"):
        detect.detect_host_cpu.__wrapped__()


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "sm_80"),
        ((8, 7), "sm_87"),
        ((8, 8), "sm_86"),  # not sm_87, which is Tegra's own
        ((8, 9), "sm_89"),
        ((10, 3), "sm_103"),
        ((12, 1), "sm_120"),
    ],
)
def test_a_gpu_runs_its_generations_newest_code(capability: tuple[int, int], arch: str) -> None:
    assert cuda_target_for(capability).arch == arch


@pytest.mark.parametrize("capability", [(7, 5), (11, 0), (13, 0)])
def test_a_gpu_that_no_code_serves_is_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(TargetError, match=rf"{capability[0]}\.{capability[1]}"):
        cuda_target_for(capability)


def test_which_code_runs_where() -> None:
    runs = {(a.name, b.name) for a, b in itertools.product(ALL, ALL) if a.runs_on(b)}
    assert all((target.name, target.name) in runs for target in ALL)
    pairs = {pair for pair in runs if pair[0] != pair[1]}
    assert pairs == {
        ("llvm-x86-64-v2", "llvm-x86-64-v3"),
        ("llvm-x86-64-v2", "llvm-x86-64-v4"),
        ("llvm-x86-64-v3", "llvm-x86-64-v4"),
        ("cuda-sm_80", "cuda-sm_86"),
        ("cuda-sm_80", "cuda-sm_89"),
        ("cuda-sm_86", "cuda-sm_89"),
        ("cuda-sm_100", "cuda-sm_103"),
    }


def test_vector_widths() -> None:
    widths = {target.arch: target.vector_bytes for target in ALL if target.kind == "llvm"}
    assert widths == {"x86-64-v2": 16, "x86-64-v3": 32, "x86-64-v4": 64, "aarch64": 16}
    assert {Target("cuda", arch).vector_bytes for arch in CUDA_ARCHS} == {16}


def test_capability_of_a_cpu_is_refused() -> None:
    assert Target("cuda", "sm_120").compute_capability == (12, 0)
    with pytest.raises(TargetError, match="compute capability"):
        Target("llvm", "aarch64").compute_capability  # noqa: B018
