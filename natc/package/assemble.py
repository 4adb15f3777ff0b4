"""Packing libraries into wheels, archives and a repository for the hub."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from natc.errors import ArgumentError, LibraryError
from natc.operations import contents
from natc.package import archives, hub
from natc.package.contents import Contents, below, library_files
from natc.package.pieces import Piece, archs_of, kind_of, target_name
from natc.package.portable import needs_problems, platform_tag
from natc.store import elf, workspace
from natc.store.files import locked
from natc.store.signing import Signer

FORMATS = ("wheel", "archive", "zip", "hf")
HUB_NAME = "natc-kernels"
_EPOCH = "SOURCE_DATE_EPOCH"
# 1980-01-01, the first day that a zip file can hold.
_NO_EPOCH = 315532800


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a package and its files.

    distribution: for pip, `natc-kernels-cuda`; module: the Python package in the wheel; target:
    `cuda`, or `cuda-sm_90` for a single architecture; tag: the wheel's platform.
    """

    distribution: str
    module: str
    target: str
    version: str
    tag: str

    @property
    def machine(self) -> str:
        """The processor that runs the host code."""
        return "aarch64" if self.tag.endswith("aarch64") else "x86_64"

    def file(self, form: str) -> str:
        """Return the name of a file in a format, or the name of the directory for `hf`."""
        base = f"{self.distribution}-{self.version}-{self.machine}"
        return {
            "wheel": f"{self.module}-{self.version}-py3-none-{self.tag}.whl",
            "archive": f"{base}.tar.gz",
            "zip": f"{base}.zip",
            "hf": HUB_NAME,
        }[form]


def epoch() -> int:
    """Return the time of files in packages, in seconds since 1970.

    SOURCE_DATE_EPOCH if it is set, else the time of the checkout's commit, else 1980. Raises
    ArgumentError if SOURCE_DATE_EPOCH is not a number of seconds.
    """
    named = os.environ.get(_EPOCH)
    if named:
        if not (named.isascii() and named.isdigit() and len(named) < 12):
            raise ArgumentError(f"{_EPOCH} is {named!r}; it must be a number of seconds.")
        return int(named)
    root = workspace.checkout()
    if root is None:
        return _NO_EPOCH
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "log", "-1", "--format=%ct"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return _NO_EPOCH
    seconds = done.stdout.strip()
    return int(seconds) if done.returncode == 0 and seconds.isdigit() else _NO_EPOCH


def names_of(pieces: Sequence[Piece], version: str) -> Names:
    """Return the names of a package of libraries.

    Raises ArgumentError for a version that pip would refuse, and LibraryError naming a library
    that would not run on other systems.
    """
    try:
        normal = str(Version(version))
    except InvalidVersion as error:
        raise ArgumentError(f"version {version!r} is not a version such as 1.2.0.") from error
    libraries = []
    for piece in pieces:
        try:
            library = elf.read(piece.code())
        except elf.ElfError as error:
            raise LibraryError(f"library {piece.path} cannot be packaged: {error}.") from error
        problems = needs_problems(library)
        if problems:
            raise LibraryError(
                f"library {piece.path} cannot be packaged: it {'; it '.join(problems)}."
            )
        libraries.append(library)
    try:
        tag = platform_tag(libraries)
    except elf.ElfError as error:
        raise LibraryError(f"{error}; make a package for each.") from error
    target = target_name(pieces)
    word = target.replace("_", "-").replace(".", "-")
    return Names(
        f"natc-kernels-{word}", f"natc_kernels_{word.replace('-', '_')}", target, normal, tag
    )


def write(
    forms: Sequence[str],
    pieces: Sequence[Piece],
    names: Names,
    output: Path,
    *,
    when: int,
    signer: Signer | None = None,
    cuda: Sequence[str] = (),
) -> list[tuple[str, Path]]:
    """Write packages into a directory, one writer at a time, and return each as (format, path).

    forms: some of `FORMATS`. when: see `epoch`. cuda: CUDA versions, one for each variant for the
    hub. Raises NatcError if a package cannot be written, LibraryError if a library has changed.
    """
    files = library_files(pieces, names.distribution, signer)
    variants = hub.variants(pieces, names.machine, cuda) if "hf" in forms else []
    written = []
    with locked(output):
        archives.remove_unfinished(output)
        hub.remove_unfinished(output / HUB_NAME)
        for form in forms:
            path = output / names.file(form)
            if form == "wheel":
                archives.write_wheel(
                    path,
                    _wheel(files, names),
                    metadata=_metadata(pieces, names),
                    entry_points=f"[{workspace.ENTRY_POINTS}]\n{names.target} = {names.module}\n",
                    epoch=when,
                )
            elif form == "hf":
                major = Version(names.version).major
                for variant in variants:
                    place = hub.write_variant(path, variant, pieces, files, version=major)
                    written.append((form, place))
                continue
            else:
                folder = below(f"{names.distribution}-{names.version}", files)
                (archives.write_tar if form == "archive" else archives.write_zip)(
                    path, folder, epoch=when
                )
            written.append((form, path))
    return written


def _wheel(files: Contents, names: Names) -> Contents:
    text = f'"""Libraries of natc for {names.target}; natc finds them without importing this."""\n'
    return {
        f"{names.module}/__init__.py": text.encode,
        **below(f"{names.module}/{workspace.WHEEL_FOLDER}", files),
    }


def _metadata(pieces: Sequence[Piece], names: Names) -> str:
    archs = ", ".join(archs_of(pieces))
    needed = max((Version(piece.manifest.natc or "0") for piece in pieces), default=Version("0"))
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {names.distribution}",
        f"Version: {names.version}",
        f"Summary: Compiled kernels of neighborhood attention for natc: {archs}",
        "License: Apache-2.0",
        "Requires-Python: >=3.10",
        # Libraries need the natc that built them, or a later one.
        f"Requires-Dist: natc>={needed}",
        "",
        f"{kind_of(pieces)} kernels for {archs}, found by natc when this is installed:",
        "",
        *(
            f"- {piece.manifest.spec}: {', '.join(contents(piece.spec, piece.manifest.entries))}"
            for piece in pieces
        ),
    ]
    return "\n".join(lines) + "\n"
