"""With NATC_TRUSTED_KEYS, only libraries that the owner of a key signed are opened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.named_functions import add_named, calls, compile_named
from support.signing_keys import write_keys

from natc import env
from natc.errors import ArgumentError, TuneError
from natc.host.detect import detect_host_cpu
from natc.package.contents import library_files
from natc.package.pieces import read_pieces
from natc.package.verify import verify_path
from natc.runtime import jit
from natc.store import workspace
from natc.store.signing import Signer, trusted
from natc.tune.measure import rounds

pytestmark = pytest.mark.quick

LIST = "kernels.sha256"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The private and the public key of two people."""
    return {name: write_keys(tmp_path_factory.mktemp(name)) for name in ("ours", "theirs")}


@pytest.fixture(scope="module")
def packages(
    tmp_path_factory: pytest.TempPathFactory, keys: dict[str, tuple[Path, Path]]
) -> dict[str, Path]:
    """Directories of the same package, by the name of the person who signed it."""
    folder = tmp_path_factory.mktemp("packages")
    add_named(folder / "built", compile_named())
    for name in ("nobody", *keys):
        signer = Signer(keys[name][0]) if name in keys else None
        (folder / name).mkdir()
        for file, content in library_files(
            read_pieces(folder / "built", 0), LIST[:-7], signer
        ).items():
            (folder / name / file).write_bytes(content())
    return {name: folder / name for name in ("nobody", *keys)}


@pytest.fixture
def package(packages: dict[str, Path], place: Path) -> Path:
    """A copy of the package that we signed."""
    return Path(shutil.copytree(packages["ours"], place / "ours"))


def trust(monkeypatch: pytest.MonkeyPatch, *files: Path | str) -> None:
    monkeypatch.setenv(env.NATC_TRUSTED_KEYS.name, os.pathsep.join(map(str, files)))


def served(directory: Path) -> bool:
    """Whether a library's functions run; otherwise each error is one sentence that says why."""
    ends = set(calls(directory))
    if "right" in ends:
        return True
    for end in ends:
        assert "is not loaded: NATC_TRUSTED_KEYS is set, and" in end or " has no " in end, end
        assert ". " not in end and ".\n" not in end
    assert any(str(directory) in end and "unset the variable" in end for end in ends), ends
    return False


def test_only_signed_packages_are_loaded(
    packages: dict[str, Path],
    keys: dict[str, tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [served(path) for path in packages.values()] == [True, True, True]
    ours, theirs = (public for _, public in keys.values())
    for trusted_keys, expected in (
        ((ours,), [False, True, False]),
        ((theirs,), [False, False, True]),
        ((ours, theirs), [False, True, True]),
    ):
        trust(monkeypatch, *trusted_keys)
        assert [served(path) for path in packages.values()] == expected
        assert [verify_path(path, key=trusted()).ok for path in packages.values()] == expected


def built_here(package: Path) -> str:
    (package / LIST).unlink()
    return "no list of hashes"


def without_signature(package: Path) -> str:
    (package / f"{LIST}.sig").unlink()
    return f"list {LIST}, which holds it, is not signed"


def longer_list(package: Path) -> str:
    path = package / LIST
    path.write_bytes(path.read_bytes() + b"0" * 64 + b"  more.so\n")
    return f"list {LIST}, which holds it, was signed by none of its keys"


def damaged_list(package: Path) -> str:
    (package / LIST).write_bytes(b"\xff\n")
    return f"list {LIST} is damaged"


def other_manifest(package: Path) -> str:
    (path,) = package.glob("*.json")
    path.write_bytes(path.read_bytes() + b"\n")
    return "no list of hashes"


@pytest.mark.parametrize(
    "change", [built_here, without_signature, longer_list, damaged_list, other_manifest]
)
def test_what_was_changed_after_signing_is_refused(
    package: Path,
    keys: dict[str, tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], str],
) -> None:
    trust(monkeypatch, keys["ours"][1])
    assert served(package)
    reason = change(package)
    assert not served(package)
    assert any(reason in end for end in calls(package))


@pytest.mark.parametrize("name", ["absent.pub", "private", "text", ""])
def test_a_key_that_cannot_be_read_refuses_everything(
    package: Path,
    keys: dict[str, tuple[Path, Path]],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    (place / "text").write_text("no key")
    path = {"private": keys["ours"][0], "": ""}.get(name, place / name)
    trust(monkeypatch, path, "")  # which ends with a separator
    assert not served(package)
    if name:
        assert any(f"key {path} " in end for end in calls(package))
        with pytest.raises(ArgumentError, match=str(path)):
            trusted()


def test_nothing_unsigned_is_built_or_measured(
    keys: dict[str, tuple[Path, Path]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATC_JIT", "on")
    trust(monkeypatch, keys["ours"][1])
    assert "NATC_TRUSTED_KEYS" in str(jit.unavailable(detect_host_cpu()))
    # Kernels in natc's own wheel would be refused, and the reference would not run.
    assert "natc" not in {place.source for place in workspace.library_places()}
    with pytest.raises(TuneError, match="candidates of a search are not signed"):
        rounds.check(place, None)  # type: ignore[arg-type]
