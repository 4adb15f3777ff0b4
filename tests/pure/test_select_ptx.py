"""A GPU newer than every architecture of a library runs the library's PTX."""

from __future__ import annotations

from pathlib import Path

import pytest

from natc.errors import LibraryError
from natc.runtime import Choice, Facts, Library, select
from natc.spec import KernelSpec
from natc.store.manifest import LibraryTarget, Manifest, dump, load_manifest
from natc.targets import Target

SPEC = KernelSpec.make(7, dtype="float16")
NO_TARGET = "the GPU has compute capability 13.0; natc compiles for sm_80."


def library(directory: Path, archs: tuple[str, ...], ptx: str) -> Library:
    manifest = Manifest(
        spec=SPEC.name,
        target=LibraryTarget("cuda", archs),
        sha256="0" * 64,
        entries={"forward": {arch: f"forward_{arch}" for arch in archs}},
        ptx=ptx,
    )
    (directory / manifest.library).touch()
    return Library(manifest, directory / f"{'-'.join(archs)}.json")


def chosen(choice: Choice | None) -> str | None:
    return choice.function if choice else None


@pytest.mark.parametrize(
    ("capability", "machine", "function"),
    [
        ((9, 0), "sm_90", "forward_sm_90"),
        ((12, 0), "sm_120", "forward_sm_90"),
        ((13, 0), None, "forward_sm_90"),
        ((8, 6), "sm_86", "forward_sm_80"),
        ((7, 5), None, None),
    ],
)
def test_the_newest_code_or_its_ptx(
    tmp_path: Path, capability: tuple[int, int], machine: str | None, function: str | None
) -> None:
    target = Target("cuda", machine) if machine else None
    facts = Facts("cuda:0", target, "" if machine else NO_TARGET, capability)
    choice, rejections = select([library(tmp_path, ("sm_80", "sm_90"), "sm_90")], SPEC, facts)
    assert chosen(choice) == function
    assert [r.reason for r in rejections] == ([] if function else [NO_TARGET.rstrip(".")])


def test_code_of_the_machine_goes_before_ptx(tmp_path: Path) -> None:
    facts = Facts("cuda:0", Target("cuda", "sm_120"), capability=(12, 0))
    with_ptx = library(tmp_path, ("sm_90",), "sm_90")
    exact = library(tmp_path, ("sm_120",), "sm_120")
    assert chosen(select([with_ptx, exact], SPEC, facts)[0]) == "forward_sm_120"


def test_no_ptx_no_newer_gpu(tmp_path: Path) -> None:
    facts = Facts("cuda:0", Target("cuda", "sm_120"), capability=(12, 0))
    choice, (rejection,) = select([library(tmp_path, ("sm_90",), "")], SPEC, facts)
    assert choice is None
    assert rejection.reason == "made for cuda-sm_90, which does not run on cuda-sm_120"
    cpu = Facts("cpu", Target("llvm", "x86-64-v3"))
    assert select([library(tmp_path, ("sm_90",), "sm_90")], SPEC, cpu)[0] is None


def test_ptx_of_an_arch_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    text = dump(library(tmp_path, ("sm_90",), "sm_90").manifest)
    path.write_text(text.replace('"ptx": "sm_90"', '"ptx": "sm_80"'))
    with pytest.raises(LibraryError, match="ptx 'sm_80' must be one of target.archs"):
        load_manifest(path)
