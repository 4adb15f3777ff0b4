"""What `natc build` asks for and shows; compiling itself is scripted."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import Natc

from natc import manifest as manifests
from natc.errors import CompilerNotFound
from natc.spec import KernelSpec
from natc.targets import Target, detect_host_cpu


class Builder:
    """Stands for the compiler: writes a library that is no code, with a true manifest."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], Path]] = []

    def __call__(
        self,
        spec: KernelSpec,
        target: Target | list[Target],
        output_dir: Path,
        *,
        on_note: Callable[[str], None] | None = None,
    ) -> Path:
        targets = [target] if isinstance(target, Target) else list(target)
        self.asked.append((spec.name, [each.name for each in targets], output_dir))
        if on_note:
            on_note(f"{spec.name} was never tuned: built untuned")
        kind = targets[0].kind
        place = manifests.LibraryTarget(kind, tuple(each.arch for each in targets))
        keys = ["llvm"] if kind == "llvm" else [each.arch for each in targets]
        stem = f"{spec.name}.{place.name}"
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / f"{stem}.so").write_bytes(b"no code")
        path = output_dir / f"{stem}.json"
        found = manifests.Manifest(
            spec=spec.name,
            target=place,
            library=f"{stem}.so",
            sha256=hashlib.sha256(b"no code").hexdigest(),
            entries={"forward": {key: f"forward_{key}" for key in keys}},
        )
        path.write_text(manifests.dump(found))
        return path


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    found = Builder()
    module: Any = ModuleType("natc.build")
    module.build_library = found
    monkeypatch.setitem(sys.modules, "natc.build", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return found


def test_both_variants_are_built_into_natcs_own_directory(
    natc: Natc, builder: Builder, place: Path
) -> None:
    code, out, err = natc("build", "--kernel", "7")
    host, where = detect_host_cpu().name, place / "cache" / "lib"
    assert code == 0
    assert builder.asked == [
        ("na2d_k7_d32_float32_rpb", [host], where),
        ("na2d_k7_d32_float32", [host], where),
    ]
    assert f"built {where / 'na2d_k7_d32_float32_rpb'}.{host}.so" in out
    assert "note: na2d_k7_d32_float32 was never tuned: built untuned" in err
    assert "NATC_LIB_PATH" not in out


def test_a_directory_of_ones_own_comes_with_how_to_use_it(
    natc: Natc, builder: Builder, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    code, out, _ = natc("build", "--kernel", "7x5", "--no-rpb", "-o", "my lib")
    assert code == 0
    assert [asked[0] for asked in builder.asked] == ["na2d_k7x5_d32_float32"]
    assert f"export NATC_LIB_PATH='{place}/my lib'" in out
    monkeypatch.setenv("NATC_LIB_PATH", f"{place}/my lib")
    listed = json.loads(natc("list", "--json").out)["libraries"]
    assert [row["spec"] for row in listed] == ["na2d_k7x5_d32_float32"]


def test_one_cuda_library_holds_every_architecture(natc: Natc, builder: Builder) -> None:
    code, out, _ = natc("build", "-k", "7", "--rpb", "--target", "cuda", "--arch", "sm_90,sm_80")
    assert code == 0
    assert [asked[:2] for asked in builder.asked] == [
        ("na2d_k7_d32_float16_rpb", ["cuda-sm_80", "cuda-sm_90"])
    ]
    assert "(sm_80, sm_90, 7 bytes)" in out


def test_json_is_one_document(natc: Natc, builder: Builder, place: Path) -> None:
    _, out, _ = natc("build", "--kernel", "7", "--json", "-o", str(place / "lib"))
    document = json.loads(out)
    assert document["directory"] == str(place / "lib")
    assert [row["manifest"]["spec"] for row in document["built"]] == [
        "na2d_k7_d32_float32_rpb",
        "na2d_k7_d32_float32",
    ]
    assert document["built"][0]["notes"]


def test_a_machine_without_a_c_compiler_says_so(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, builder: Builder
) -> None:
    def none(*_: object, **__: object) -> Path:
        raise CompilerNotFound("there is no C compiler: pip install ziglang.")

    monkeypatch.setattr(sys.modules["natc.build"], "build_library", none)
    code, out, err = natc("build", "--kernel", "7")
    assert (code, out) == (1, "")
    assert err == "natc: error: there is no C compiler: pip install ziglang.\n"
