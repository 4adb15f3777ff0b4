"""What packages hold, and that their bytes depend on nothing else."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from support.library_files import library_of, make_manifest
from support.own_folders import unset_variables
from support.signing_keys import write_keys
from support.tiny_library import ARCH, SPEC, add_library, add_wheel, compile_c

from natc.errors import ArgumentError, LibraryError, NatcError
from natc.host import detect
from natc.package import assemble, jobs, plan
from natc.package.pieces import Piece, read_pieces
from natc.package.portable import (
    glibc_problem,
    manifest_problems,
    needs_problems,
    platform_tag,
)
from natc.package.sources import modules_of, relative
from natc.spec import KernelSpec
from natc.store import elf, fatbin, workspace
from natc.store.manifest import LibraryTarget
from natc.store.signing import Signer, Verifier, parse_sums
from natc.targets import Target

NAME = f"{SPEC.name}.llvm-{ARCH}.json"
OTHER = KernelSpec.make(3, head_dim=8, dtype="float16")
WHEN = 1_700_000_000


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset_variables(monkeypatch)
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("libraries")
    for spec in (SPEC, OTHER):
        add_library(directory, spec)
    return directory


@pytest.fixture
def pieces(libraries: Path) -> list[Piece]:
    return read_pieces(libraries, WHEN)


def written(pieces: list[Piece], output: Path, *forms: str, version: str = "0.1.0") -> list[Path]:
    names = assemble.names_of(pieces, version)
    packages = assemble.write(forms, pieces, names, output, when=WHEN, cuda=("13.0",))
    return [path for _, path in packages]


# The symbols and libraries that a library needs


def test_symbols_of_a_library_are_read(libraries: Path) -> None:
    library = elf.read(library_of(libraries / NAME).read_bytes())
    assert library.machine == detect.host_machine()
    assert "libc.so.6" in library.needed
    assert any(name.startswith(f"__tvm_ffi_{SPEC.name}_forward_") for name in library.defined)
    needed = {symbol.name: symbol for symbol in library.undefined}
    assert needed["malloc"].version.startswith("GLIBC_")
    assert needed["TVMFFIErrorSetRaisedFromCStr"].version == ""
    assert (2, 0) < library.glibc < (3, 0)
    assert needs_problems(library) == [] and glibc_problem(library) is None


@pytest.mark.parametrize(
    ("source", "flags", "problem"),
    [
        ("int helper(void) { return 1; }", (), "shows helper, which is not a kernel"),
        ("extern int absent(void); int __tvm_ffi_f(void) { return absent(); }", (),
         "needs absent, which nothing provides"),
        ("extern int absent(void) __attribute__((weak));"
         "int __tvm_ffi_f(void) { return absent ? absent() : 0; }", (), None),
        ("int __tvm_ffi_f(void) { return 0; }", ("-Wl,--no-as-needed", "-lgcc_s"),
         "needs libgcc_s.so.1, which is not part of every system"),
    ],
)  # fmt: skip
def test_foreign_symbols(
    tmp_path: Path, source: str, flags: tuple[str, ...], problem: str | None
) -> None:
    code = compile_c(source, tmp_path / "a.so", *flags).read_bytes()
    assert needs_problems(elf.read(code)) == ([problem] if problem else [])


def symbols(*versions: str) -> elf.SharedLibrary:
    needed = tuple(elf.Symbol(f"f{i}", version, False) for i, version in enumerate(versions))
    return elf.SharedLibrary("x86_64", (), (), needed, b"")


def test_the_newest_version_of_glibc_counts() -> None:
    old, new = symbols("GLIBC_2.2.5", "GLIBC_2.28"), symbols("GLIBC_2.9", "GLIBC_2.34")
    assert old.glibc == (2, 28) and glibc_problem(old) is None
    assert glibc_problem(new) == "needs glibc 2.34 or newer, for f1"
    assert symbols().glibc == (0,)
    assert (old.glibc_text, symbols().glibc_text) == ("2.28", "")
    assert platform_tag([old]) == "manylinux_2_28_x86_64"
    assert platform_tag([old, new]) == "manylinux_2_34_x86_64"


def entry(kind: int, arch: int, content: bytes) -> bytes:
    """Machine code (2) or PTX (1) for an architecture, as it lies in a fatbin."""
    header = struct.pack("<HHIQ", kind, 0x101, 64, len(content)).ljust(28, b"\0")
    return (header + struct.pack("<I", arch)).ljust(64, b"\0") + content


def fat(*entries: bytes) -> bytes:
    whole = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(whole)) + whole


def test_device_code_is_counted_by_architecture() -> None:
    section = (
        fat(entry(2, 80, b"a" * 8), entry(1, 90, b"b" * 16)) + b"\0" * 8 + fat(entry(2, 120, b""))
    )
    sizes = [(image.arch, len(image.content)) for image in fatbin.images(section)]
    assert sizes == [("sm_80", 8), ("compute_90", 16), ("sm_120", 0)]
    assert fatbin.images(b"") == [] and fatbin.images(b"no fatbin") == []
    for length in range(len(section)):
        fatbin.images(section[:length])


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({}, []),
        ({"glibc": "2.28"}, []),
        ({"glibc": "2.17"}, ["needs glibc 2.28, not 2.17 as its manifest says"]),
        ({"ptx": "sm_90"}, []),
        ({"ptx": "sm_80"}, ["has no PTX of sm_80, which its manifest names"]),
    ],
    ids=str,
)
def test_false_claims_of_manifests_are_named(changes: dict[str, str], problems: list[str]) -> None:
    device = fat(entry(2, 80, b"a" * 8), entry(2, 90, b"b"), entry(1, 90, b"c"))
    manifest = make_manifest(SPEC, LibraryTarget("cuda", ("sm_80", "sm_90")), **changes)
    functions = tuple(f"__tvm_ffi_{name}" for name in manifest.entries["forward"].values())
    code = replace(symbols("GLIBC_2.28"), defined=functions, device_code=device)
    assert manifest_problems(code, manifest) == problems
    lacking = manifest_problems(replace(code, device_code=b""), manifest)
    assert "has no device code for sm_80, sm_90" in lacking


# Packing


@pytest.mark.parametrize("form", assemble.FORMATS)
def test_equal_libraries_make_equal_packages(libraries: Path, tmp_path: Path, form: str) -> None:
    """Though built at other times, in another order, under another umask."""
    for folder, specs in (("a", (OTHER, SPEC)), ("b", (SPEC, OTHER))):
        for spec in specs:
            path = add_library(tmp_path / folder, spec, built_at=f"2020-01-0{len(folder)}")
            os.utime(library_of(path), (0, 0))
    first = written(read_pieces(libraries, WHEN), tmp_path / "1", form)
    before = os.umask(0o077)
    try:
        second = written(read_pieces(tmp_path / "b", WHEN), tmp_path / "2", form)
    finally:
        os.umask(before)
    third = written(read_pieces(tmp_path / "a", WHEN), tmp_path / "3", form)
    assert content(first[0]) == content(second[0]) == content(third[0])


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_a_wheel_follows_the_format(libraries: Path, pieces: list[Piece], tmp_path: Path) -> None:
    (path,) = written(pieces, tmp_path, "wheel", version="1.02")
    word = f"natc_kernels_llvm_{ARCH.replace('-', '_')}"
    assert path.name == f"{word}-1.2-py3-none-manylinux_2_28_{detect.host_machine()}.whl"
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        assert {f"{word}/__init__.py", f"{word}/lib/{NAME}"} <= set(names)
        assert f"{word}/lib/{library_of(libraries / NAME).name}" in names
        dates = {info.date_time for info in wheel.infolist()}
        assert dates == {(2023, 11, 14, 22, 13, 20)}
        assert {info.external_attr >> 16 for info in wheel.infolist()} == {0o100644}
        folder = f"{word}-1.2.dist-info"
        assert names[-1] == f"{folder}/RECORD"
        rows = list(csv.reader(wheel.read(names[-1]).decode().splitlines()))
        assert [row[0] for row in rows] == names
        for name, digest, size in rows[:-1]:
            data = wheel.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            assert (digest, int(size)) == (f"sha256={expected.decode()}", len(data))
        metadata = wheel.read(f"{folder}/METADATA").decode()
        assert f"Name: {word.replace('_', '-')}\nVersion: 1.2\n" in metadata
        assert "Requires-Dist: natc>=0.1.0\n" in metadata


def test_an_archive_is_one_folder_with_public_files(pieces: list[Piece], tmp_path: Path) -> None:
    (path,) = written(pieces, tmp_path, "archive")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    names = assemble.names_of(pieces, "0.1.0")
    assert path.name == f"{names.distribution}-0.1.0-{names.machine}.tar.gz"
    assert {m.name.split("/")[0] for m in members} == {f"{names.distribution}-0.1.0"}
    assert all((m.mode, m.uid, m.mtime, m.uname) == (0o644, 0, WHEN, "") for m in members)


def test_sha256sum_reads_the_list_of_hashes(pieces: list[Piece], tmp_path: Path) -> None:
    (path,) = written(pieces, tmp_path, "zip")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    (listed,) = (tmp_path / "out").rglob("*.sha256")
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", listed.name],
        cwd=listed.parent, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set(parse_sums(listed.read_bytes())) == {p.name for p in listed.parent.iterdir()} - {
        listed.name
    }


def test_a_library_that_changed_is_not_packed(tmp_path: Path) -> None:
    path = add_library(tmp_path / "lib")
    pieces = read_pieces(tmp_path / "lib", WHEN)
    names = assemble.names_of(pieces, "1")
    with library_of(path).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(LibraryError, match=f"{library_of(path)} is not the file"):
        assemble.write(("wheel",), pieces, names, tmp_path / "out", when=WHEN)
    assert list((tmp_path / "out").glob("[!.]*")) == []
    with pytest.raises(LibraryError, match="(?s)is not the file.*natc build"):
        read_pieces(tmp_path / "lib", WHEN)


def test_what_cannot_be_packed_is_named(pieces: list[Piece], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="version 'new' is not a version"):
        assemble.names_of(pieces, "new")
    with pytest.raises(LibraryError, match="holds no library"):
        read_pieces(tmp_path, WHEN)
    path = add_library(tmp_path, source="int leaked(void) { return 1; }")
    with pytest.raises(LibraryError, match="it shows leaked, which is not a kernel"):
        assemble.names_of(read_pieces(tmp_path, WHEN), "1")
    path.with_name("bad.json").write_text("{")
    with pytest.raises(LibraryError, match="bad.json cannot be packaged"):
        read_pieces(tmp_path, WHEN)


def test_time_of_files_in_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert assemble.epoch() == 86400
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ArgumentError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        assemble.epoch()
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    monkeypatch.setattr(workspace, "checkout", lambda: None)
    assert assemble.epoch() == 315532800
    monkeypatch.setattr(workspace, "checkout", lambda: tmp_path)
    assert assemble.epoch() == 315532800, "a folder that is no repository"


# Finding installed wheels


def test_found_wheel(pieces: list[Piece], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wheel,) = written(pieces, tmp_path, "wheel")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    module = wheel.name.split("-")[0]
    (site / module / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("NATC_LIB_PATH", str(tmp_path / "named"))
    places = workspace.library_places()
    assert [place.source for place in places[:3]] == [
        "NATC_LIB_PATH", f"wheel {module.replace('_', '-')} 0.1.0", "cache"
    ]  # fmt: skip
    assert places[1].path == site / module / "lib"
    assert workspace.library_place(site / module / "lib") == places[1]
    assert module not in sys.modules


def test_an_editable_wheel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_wheel(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert workspace.library_places()[0].source == "cache"
    package = tmp_path / "elsewhere" / "natc_kernels_tiny"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    assert workspace.library_places()[0].path == package / "lib"


def test_use_library_dir_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_used", [])
    monkeypatch.setenv("NATC_LIB_PATH", str(tmp_path / "named"))
    for name in ("a", "b", "a"):
        workspace.use_library_dir(tmp_path / name)
    assert workspace.library_dirs()[:3] == [tmp_path / "a", tmp_path / "b", tmp_path / "named"]


# Signatures


def test_a_signature_is_of_these_bytes_and_this_key(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    signature = Signer(private).sign(b"bytes")
    verifier = Verifier(public)
    assert verifier.verify(b"bytes", signature)
    assert not verifier.verify(b"other bytes", signature)
    assert not verifier.verify(b"bytes", b"AAAA")
    assert not verifier.verify(b"bytes", b"\xff")


def test_wrong_keys_are_refused(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    (tmp_path / "none.pem").write_text("none")
    for path in (public, tmp_path / "none.pem", tmp_path / "absent.pem"):
        with pytest.raises(ArgumentError, match=f"key {path}"):
            Signer(path)
    with pytest.raises(ArgumentError, match=f"key {private}"):
        Verifier(private)


def test_signing_names_its_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(NatcError, match="pip install 'natc\\[sign\\]'"):
        Signer(tmp_path / "key.pem")


# Which kernels


def test_the_set_of_nat_is_seventy_two_kernels() -> None:
    nat = plan.SETS["nat"]
    kernels = plan.specs(nat.kernels, nat.head_dims, nat.dtypes, (True, False))
    assert len(kernels) == len({spec.name for spec in kernels}) == 72
    assert {spec.kernel_size[0] for spec in kernels} == {3, 5, 7, 9, 11, 13}
    assert len(jobs.jobs(kernels, "cuda", ("sm_80", "sm_90"), nat.families)) == 72
    assert len(jobs.jobs(kernels, "llvm", ("x86-64-v2", "x86-64-v3"), nat.families)) == 144


def test_sizes_of_several_ranks_and_repetitions() -> None:
    kernels = plan.specs(("7", "7x5", "3x3x3", "7"), (32,), ("float32",), (False,))
    assert [spec.name for spec in kernels] == [
        "na2d_k7_d32_float32", "na2d_k7x5_d32_float32", "na3d_k3_d32_float32"
    ]  # fmt: skip
    assert plan.specs(("7",), (8,), ("float32",), (True,), rank=1)[0].rank == 1


def test_a_changed_code_module_rebuilds_libraries() -> None:
    counted = {path.relative_to(jobs.PACKAGE).as_posix() for path in jobs.code_files()}
    assert counted >= {
        "compiler/build/llvm.py",
        "compiler/space/cpu/rows.py",
        "compiler/te/forward.py",
        "compiler/tensor_cores/forward.py",
        "compiler/build/launcher/threads.c",
        "compiler/build/launcher/mma.cuh",
        "store/elf.py",
        "host/c_compiler.py",
        "window.py",
    }
    unrelated = {"cli/verbs/build.py", "package/jobs.py", "dispatch/launch.py", "__init__.py"}
    assert not counted & unrelated and all((jobs.PACKAGE / file).is_file() for file in unrelated)


def test_imports_are_followed_to_their_end_and_made_relative(tmp_path: Path) -> None:
    package = tmp_path / "natc"
    for name, text in {
        "__init__.py": "import natc.unused",
        "unused.py": "",
        "annotations.py": "",
        "a/__init__.py": "from natc.b import value",
        "a/deep.py": (
            "from typing import TYPE_CHECKING\nfrom natc import c\n"
            "def f():\n    from natc.d.e import g  # late\n"
            "    from natc.a import (\n        value,\n    )\n"
            "if TYPE_CHECKING:\n    import natc.annotations\n"
        ),
        "b.py": "value = 1",
        "c.py": "import os",
        "d/__init__.py": "",
        "d/e.py": "g = 2",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    modules = modules_of("natc.a.deep", package=package)
    assert list(modules) == ["natc.a", "natc.a.deep", "natc.b", "natc.c", "natc.d", "natc.d.e"]
    assert relative("natc.a", modules["natc.a"]) == b"from ..b import value"
    with pytest.raises(NatcError, match="deep.py:9: write this import as"):
        relative("natc.a.deep", modules["natc.a.deep"])
    deep = modules["natc.a.deep"]
    deep.write_text(deep.read_text().replace("import natc.annotations", "pass"))
    lines = relative("natc.a.deep", deep).decode().splitlines()
    assert lines[1] == "from .. import c"
    assert lines[3:5] == ["    from ..d.e import g  # late", "    from ..a import ("]
    with pytest.raises(NatcError, match="module natc.gone has no file"):
        modules_of("natc.gone", package=package)


def test_any_changed_input_rebuilds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path / "workspace"))
    job = jobs.Job(SPEC, (Target("llvm", "x86-64-v3"),), ("forward",))
    first = jobs.directory_of(job, "tools 1")
    assert jobs.directory_of(job, "tools 1") == first
    changed = {
        jobs.directory_of(job, "tools 2"),
        jobs.directory_of(jobs.Job(SPEC, job.targets, ("forward", "backward")), "tools 1"),
        jobs.directory_of(jobs.Job(OTHER, job.targets, ("forward",)), "tools 1"),
    }
    sibling = KernelSpec.make(7)
    schedule = workspace.schedule_path(sibling, job.targets[0])
    schedule.parent.mkdir(parents=True)
    schedule.write_text("{}")
    changed.add(jobs.directory_of(job, "tools 1"))
    monkeypatch.setenv("NATC_CC", "gcc")
    changed.add(jobs.directory_of(job, "tools 1"))
    assert len(changed) == 5 and first not in changed


def test_a_build_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    job = jobs.Job(SPEC, (Target("llvm", ARCH),), ("forward",))
    assert jobs.built(job, "") is None
    path = add_library(jobs.directory_of(job, ""))
    library = jobs.built(job, "")
    assert library is not None and library.manifest_path == path
    library_of(path).unlink()
    assert jobs.built(job, "") is None
