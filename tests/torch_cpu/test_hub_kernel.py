"""The program in packages for the hub chooses the code for a GPU as natc does."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from natc.errors import TargetError
from natc.package import hub, hub_kernel
from natc.package.pieces import Piece
from natc.runtime import Facts, Library, select
from natc.spec import KernelSpec
from natc.store import manifest
from natc.targets import CUDA_ARCHS, cuda_target_for

SPEC = KernelSpec.parse("na2d_k3_d8_float16")
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (13, 0))
GPU = torch.device("cuda", 0)


def made_for(archs: tuple[str, ...], ptx: str) -> manifest.Manifest:
    return manifest.Manifest(
        spec=SPEC.name,
        target=manifest.LibraryTarget("cuda", archs),
        sha256="0" * 64,
        entries={"forward": {arch: f"forward_{arch}" for arch in archs}},
        ptx=ptx,
    )


def facts_of(capability: tuple[int, int]) -> Facts:
    try:
        return Facts("cuda", cuda_target_for(capability), "", capability)
    except TargetError as error:
        return Facts("cuda", None, str(error), capability)


def chosen_by_natc(
    found: manifest.Manifest, directory: Path, capability: tuple[int, int]
) -> str | None:
    (directory / found.library).touch()
    library = Library(found, directory / "manifest.json")
    choice, _ = select([library], SPEC, facts_of(capability))
    return choice and choice.function


def chosen_by_the_package(
    found: manifest.Manifest, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> str | None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    content: dict[str, Any] = json.loads(manifest.dump(found))
    monkeypatch.setattr(hub_kernel, "_manifests", lambda: {SPEC.name: [content]})
    module = {name: name for name in found.entries["forward"].values()}
    monkeypatch.setattr(hub_kernel.tvm_ffi, "load_module", lambda path: module)
    hub_kernel._function.cache_clear()
    try:
        return hub_kernel._function(SPEC.name, "forward", GPU)[0]
    except NotImplementedError:
        return None
    finally:
        hub_kernel._function.cache_clear()


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda pair: f"{pair[0]}.{pair[1]}")
def test_both_choose_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    choices = []
    for count in (1, 2, 3):
        for archs in itertools.combinations(CUDA_ARCHS, count):
            for ptx in ("", archs[-1]):
                found = made_for(archs, ptx)
                natc = chosen_by_natc(found, tmp_path, capability)
                assert chosen_by_the_package(found, capability, monkeypatch) == natc, (archs, ptx)
                choices.append(natc)
    assert (None in choices) and (len(set(choices)) > 1) == (capability >= (8, 0))


@pytest.mark.parametrize(("ptx", "listed"), [("sm_90", "9.0+PTX"), ("", "9.0")])
def test_metadata_says_which_gpus_newer_ones_included(ptx: str, listed: str) -> None:
    """As `kernels` 0.17 reads it: `+PTX` is any newer GPU."""
    piece = Piece(Path("lib.so"), made_for(("sm_80", "sm_90"), ptx))
    data = hub._metadata("natc-kernels", "natc_kernels", "tvm-ffi01-cu130-x86_64-linux", [piece],
                         {"__init__.py": "x"}, 1)  # fmt: skip
    content = msgspec.json.decode(data)
    assert content["backend"] == {"type": "cuda", "archs": ["8.0", listed]}
