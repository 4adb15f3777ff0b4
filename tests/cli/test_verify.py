"""`natc verify`: every kind of package, every kind of damage."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Natc
from support.library_files import edit_json, library_of, rewrite
from support.signing_keys import write_keys
from support.tiny_library import ARCH, SPEC, add_library

from natc.package.containers import Directory
from natc.package.verify import verify_path
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.manifest import LibraryTarget

pytestmark = pytest.mark.quick


def document(natc: Natc, *words: str) -> Any:
    result = natc("verify", *words, "--json")
    content = json.loads(result.out)
    assert result.code == (0 if content["ok"] else 1)
    return content


def problems(natc: Natc, *words: str) -> list[str]:
    """Check one path; return all that is wrong with it."""
    (report,) = document(natc, *words)["checked"]
    return report["problems"] + [text for row in report["libraries"] for text in row["problems"]]


@pytest.fixture
def wheel(natc: Natc, place: Path) -> Path:
    return packed(natc, place, "wheel")


def packed(natc: Natc, place: Path, form: str, *words: str) -> Path:
    if not (place / "libraries").is_dir():
        add_library(place / "libraries")
    result = natc(
        "package", "--from", str(place / "libraries"), "--format", form, "-o", str(place / "dist"),
        *words, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    return Path(json.loads(result.out)["files"][0]["path"])


def test_what_is_intact_is_said_to_be(natc: Natc, place: Path) -> None:
    name = library_of(add_library(place / "libraries")).name
    code, out, err = natc("verify", str(place / "libraries"))
    assert (code, err) == (0, "")
    assert name in out and "intact" in out and "nothing is wrong" in out
    (report,) = document(natc, str(place / "libraries"))["checked"]
    (row,) = report["libraries"]
    assert (row["library"], row["spec"], row["target"]) == (name, SPEC.name, f"llvm {ARCH}")
    assert row["glibc"].startswith("2.")


def test_without_a_path_it_checks_where_natc_looks(natc: Natc, place: Path) -> None:
    assert natc("verify").out.startswith("no library directories")
    workspace.library_dir().mkdir(parents=True)
    assert natc("verify").code == 0
    library = library_of(add_library(workspace.library_dir()))
    library.write_bytes(b"other")
    code, out, _ = natc("verify")
    assert code == 1
    assert f"problem: {library.name}: is not the file that its manifest vouches for" in out


def test_a_directory_in_which_nothing_was_checked_is_not_right(natc: Natc, wheel: Path) -> None:
    archive = packed(natc, wheel.parent.parent, "archive")
    (wheel.parent / "file.txt").touch()
    folder = str(wheel.parent)
    assert problems(natc, folder) == [f"holds no library, but packages: give {archive}, {wheel}"]
    assert natc("verify", folder).code == 1
    (wheel.parent / "empty").mkdir()
    assert problems(natc, f"{folder}/empty") == ["holds no library"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent does not exist"),
        ("file.txt", "file.txt is no package; give a directory, a wheel"),
        ("x" * 300, "cannot be read: file name too long"),
    ],
)
def test_what_is_no_package_is_refused_with_2(
    natc: Natc, place: Path, name: str, message: str
) -> None:
    (place / "file.txt").write_bytes(b"no archive")
    code, out, err = natc("verify", str(place / name))
    assert (code, out) == (2, "") and f"{place}/{name}" in err and message in err


@pytest.mark.parametrize("name", ["a.whl", "a.zip", "a.tar.gz", "a.tar"])
@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_package_that_cannot_be_read_has_a_problem(
    natc: Natc, place: Path, name: str, content: bytes
) -> None:
    (place / name).write_bytes(content)
    code, out, err = natc("verify", str(place / name))
    assert (code, err) == (1, "") and f"problem: {place / name}: cannot be read: " in out
    (problem,) = problems(natc, str(place / name))
    assert problem.startswith("cannot be read: ")


def cut(path: Path) -> None:
    rewrite(path, library_of(path).read_bytes()[:-200])


def other_spec(path: Path) -> None:
    rewrite(path, spec="na2d_k3_d32_float32_rpb")


def other_name(path: Path) -> None:
    path.rename(path.with_name("na2d_k3_d32_float32_rpb.llvm-x86-64-v2.json"))


def other_machine(path: Path) -> None:
    arch = "x86-64-v2" if ARCH == "aarch64" else "aarch64"
    rewrite(path, target=LibraryTarget("llvm", (arch,)))


def claim_cuda(path: Path) -> None:
    rewrite(path, target=LibraryTarget("cuda", ("sm_90",)))


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (lambda path: library_of(path).write_bytes(b"x"), "is not the file that its"),
        (lambda path: library_of(path).unlink(), "is missing, though there is a manifest"),
        (lambda path: path.unlink(), "no manifest names it"),
        (lambda path: path.write_text("{"), "is not valid"),
        (lambda path: edit_json(path, schema_version=99), "written by a newer natc"),
        (lambda path: path.parent.chmod(0o777), "can be written by everyone"),
        (cut, "cannot be loaded: it is cut short"),
        (lambda path: edit_json(path, spec="na2d_k3_d32_float32_rpb"), "entries.forward must be"),
        (lambda path: edit_json(path, alignment=4), "alignment 4 must be 64"),
        (other_spec, "has no function na2d_k3_d32_float32_rpb_forward_.*, which its manifest"),
        (other_name, f"the name of its file must be {SPEC.name}.llvm-{ARCH}.json"),
        (other_machine, "as its manifest says"),
        (claim_cuda, "has no device code for sm_90"),
    ],
)
def test_damage_is_named(
    natc: Natc, place: Path, damage: Callable[[Path], None], pattern: str
) -> None:
    path = add_library(place / "libraries")
    damage(path)
    messages = problems(natc, str(place / "libraries"))
    assert any(re.search(pattern, text) for text in messages), messages


def test_a_directory_is_checked_again_if_a_library_is_replaced_meanwhile(
    natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_library(place / "libraries")
    newer = add_library(place / "newer", source="int __tvm_ffi_other(void) { return 2; }")
    read = Directory.read

    def read_late(container: Directory, name: str) -> bytes:
        monkeypatch.undo()
        rewrite(path, library_of(newer).read_bytes())
        return read(container, name)

    monkeypatch.setattr(Directory, "read", read_late)
    report = verify_path(path.parent)
    assert report.ok and [row.library for row in report.rows] == [library_of(path).name]


def test_a_symbol_too_many_is_named(natc: Natc, place: Path) -> None:
    add_library(place, source="int leaked(void) { return 1; }")
    assert problems(natc, str(place)) == ["shows leaked, which is not a kernel"]


@pytest.mark.parametrize("form", ["wheel", "zip"])
def test_each_changed_file_of_a_zip_is_found(natc: Natc, place: Path, form: str) -> None:
    path = packed(natc, place, form)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for name in files:
        if name.endswith("RECORD"):
            continue
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in files.items():
                archive.writestr(member, data + b" " if member == name else data)
        assert problems(natc, str(path)), name
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in files.items():
                if member != name:
                    archive.writestr(member, data)
        assert problems(natc, str(path)) or name.endswith(".sha256"), name


def test_each_changed_file_for_the_hub_is_found(natc: Natc, place: Path) -> None:
    folder = packed(natc, place, "hf")
    repository = folder.parent.parent
    assert problems(natc, str(repository)) == []
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        data = file.read_bytes()
        file.write_bytes(data.replace(b"1", b"2"))
        if file.read_bytes() != data and file.name != "metadata.json":
            assert problems(natc, str(repository)), file
        file.unlink()
        assert problems(natc, str(repository)), file
        file.write_bytes(data)
    (folder / "extra.py").touch()
    assert any("extra.py" in text for text in problems(natc, str(repository)))


def test_a_wheel_that_natc_would_not_find_is_one_with_a_problem(natc: Natc, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data.replace(b"[natc.kernels]", b"[other.kernels]"))
    assert any("natc would not find it" in text for text in problems(natc, str(wheel)))


# Signatures


@pytest.fixture
def keys(place: Path) -> tuple[Path, Path]:
    return write_keys(place)


@pytest.mark.parametrize("form", ["wheel", "archive", "hf"])
def test_a_signed_package_is_known_by_its_key(
    natc: Natc, place: Path, keys: tuple[Path, Path], form: str
) -> None:
    private, public = keys
    path = packed(natc, place, form, "--sign", str(private))
    path = path.parent.parent if form == "hf" else path
    assert problems(natc, str(path), "--key", str(public)) == []
    (report,) = document(natc, str(path), "--key", str(public))["checked"]
    assert [row["signed"] for row in report["libraries"]] == [True]
    code, _, err = natc("verify", str(path), "--key", str(private))
    assert code == 2 and str(private) in err


def test_an_unsigned_package_and_another_key_are_refused(
    natc: Natc, place: Path, keys: tuple[Path, Path], wheel: Path
) -> None:
    private, public = keys
    messages = problems(natc, str(wheel), "--key", str(public))
    assert any("is not signed" in text for text in messages)
    assert any("is on no list that this key's owner signed" in text for text in messages)
    signed = packed(natc, place, "archive", "--sign", str(private))
    write_keys(place)
    messages = problems(natc, str(signed), "--key", str(public))
    assert any("is not of this key's owner" in text for text in messages)


def test_a_library_slipped_into_a_signed_directory_is_found(
    natc: Natc, place: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    path = packed(natc, place, "archive", "--sign", str(private))
    with tarfile.open(path) as archive:
        archive.extractall(place / "out")
    (folder,) = (place / "out").iterdir()
    assert problems(natc, str(folder), "--key", str(public)) == []
    add_library(folder, KernelSpec.make(3))
    assert problems(natc, str(folder)) == []
    messages = problems(natc, str(folder), "--key", str(public))
    assert messages == ["is on no list that this key's owner signed"]
