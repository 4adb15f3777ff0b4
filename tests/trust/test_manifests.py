"""No edit of a manifest makes a call run another function, or crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.library_files import edit_json
from support.mutations import demand, fuzz
from support.named_functions import SPEC, TARGET, add_named, calls, compile_named

from natc.operations import operations_of
from natc.package.verify import verify_path

pytestmark = pytest.mark.quick

Content = dict[str, Any]
OTHER_ARCH = "x86-64-v3" if TARGET.archs[0] == "x86-64-v2" else "x86-64-v2"


@pytest.fixture(scope="module")
def code() -> bytes:
    return compile_named()


@pytest.fixture
def manifest(code: bytes, tmp_path: Path) -> Path:
    return add_named(tmp_path / "lib", code)


def swap(first: str, second: str) -> Callable[[Content], None]:
    """An edit that swaps the functions of two operations."""

    def edit(content: Content) -> None:
        entries = content["entries"]
        entries[first], entries[second] = entries[second], entries[first]

    return edit


def rename(first: str, second: str) -> Callable[[Content], None]:
    """An edit that offers the function of one operation as another."""

    def edit(content: Content) -> None:
        content["entries"][second] = content["entries"].pop(first)

    return edit


def replace(old: str, new: str, *fields: str) -> Callable[[Content], None]:
    """An edit of a text in some fields."""

    def edit(content: Content) -> None:
        for field in fields:
            text = json.dumps(content[field])
            demand(old in text, f"{old} is not in {field}")
            content[field] = json.loads(text.replace(old, new))

    return edit


def another_arch(content: Content) -> None:
    arch = TARGET.archs[0]
    text = json.dumps(content)
    for old, new in ((arch, OTHER_ARCH), (arch.replace("-", "_"), OTHER_ARCH.replace("-", "_"))):
        text = text.replace(old, new)
    content |= json.loads(text)


def put(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content.update(changes)


EVERYWHERE = ("spec", "library", "entries")
EDITS = {
    **{f"spec {new}": replace("_k3_", new, "spec") for new in ("_k7_", "_k5_", "_k3x5_")},
    **{f"all names {new}": replace("_k3_", new, *EVERYWHERE) for new in ("_k7_", "_k5_")},
    "wider heads": replace("_d8_", "_d16_", *EVERYWHERE),
    "wider values": replace("_d8_", "_d8v16_", *EVERYWHERE),
    "another dtype": replace("float32", "float64", *EVERYWHERE),
    "another rank": replace("na2d", "na1d", *EVERYWHERE),
    "a bias": replace("float32", "float32_rpb", *EVERYWHERE),
    "a term": replace("float32", "float32_softcap", *EVERYWHERE),
    "gradients swapped": swap("d_query", "d_key"),
    "packed swapped": swap("forward", "forward_packed"),
    "lse swapped": swap("forward", "forward_lse"),
    "unfused swapped": swap("av", "inverse_av"),
    "a gradient renamed": rename("d_query", "d_key"),
    "an operation that no kernel without bias has": rename("d_query", "d_rpb"),
    "an unknown arch": put(target={"kind": "llvm", "archs": ["x86-64-v9"]}),
    "another arch": another_arch,
    "a GPU": put(target={"kind": "cuda", "archs": ["sm_90"]}),
    "two archs": put(target={"kind": "llvm", "archs": ["x86-64-v2", "x86-64-v3"]}),
    "another library": put(library="na2d_k3_d8_float32.llvm-x86-64-v3.0000000000000000.so"),
    "another hash": put(sha256="0" * 64),
    "another version": put(schema_version=3),
    "no entries": put(entries={}),
    "an older glibc": put(glibc="2.0"),
    "a newer glibc": put(glibc="9.9"),
    "PTX": put(ptx="sm_90"),
    **{f"alignment {number}": put(alignment=number) for number in (128, 32, 16, 4, 2, 1, 0)},
}


@pytest.mark.parametrize("forged", [False, True], ids=["", "forged"])
@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_serves_nothing_wrong(manifest: Path, name: str, forged: bool) -> None:
    """Forged: with the checksum of the new content, and under the name that it demands."""
    content = json.loads(manifest.read_bytes())
    EDITS[name](content)
    manifest.write_text(json.dumps(content))
    if forged:
        edit_json(manifest)
        target = content["target"]
        place = "cuda" if target["kind"] == "cuda" else f"llvm-{target['archs'][0]}"
        manifest = manifest.rename(manifest.with_name(f"{content['spec']}.{place}.json"))
    ends = set(calls(manifest.parent))
    demand(bool(ends), "neither a function nor an error")
    for end in ends - {"right"}:
        demand(str(manifest.parent) in end, f"the error names no file: {end}")
    if not forged:
        demand("right" not in ends, "a wrong checksum was accepted")
    # Calls do not rely on the glibc: a loader that lacks a symbol says so.
    demand("right" not in ends or "glibc" in name, f"{name} changes what calls rely on: {ends}")
    report = verify_path(manifest.parent)
    demand(not report.ok, "natc verify finds nothing")


def test_the_unedited_manifest_serves_every_operation(manifest: Path) -> None:
    ends = list(calls(manifest.parent))
    demand(ends.count("right") == len(operations_of(SPEC)), str(ends))
    demand(verify_path(manifest.parent).ok, str(verify_path(manifest.parent)))


def test_a_manifest_under_another_name_serves_nothing(manifest: Path) -> None:
    renamed = manifest.rename(manifest.with_name(manifest.name.replace("_k3_", "_k7_")))
    for end in calls(renamed.parent):
        demand(f"{renamed} is not valid: the name of its file must be {manifest.name}" in end, end)
    (row, _) = verify_path(renamed.parent).rows
    demand(row.problems != [], "natc verify finds nothing")


def test_a_damaged_manifest_serves_the_same_functions_or_none(
    manifest: Path, record_property: Callable[[str, object], None]
) -> None:
    def check() -> str:
        ends = list(calls(manifest.parent))
        if ends.count("right") == len(operations_of(SPEC)):
            return "unchanged"
        for end in ends:
            demand(end.startswith(str(manifest)), f"{end} is no error that names the file")
        return "refused"

    record_property("mutations", ("manifest", fuzz(manifest, check, seed=1, count=400)))
