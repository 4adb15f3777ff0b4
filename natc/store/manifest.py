"""The manifest of a kernel library: what is in the file beside it, and how that file was made."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from natc.errors import LibraryError, NatcError
from natc.spec import KernelSpec
from natc.store.files import reason
from natc.targets import Target

# 2: functions take strides, causal flags and the heads that share one of key and value.
SCHEMA_VERSION = 2
SUFFIX = ".json"


class LibraryTarget(msgspec.Struct, frozen=True):
    """The machines a library holds code for: kind `llvm` or `cuda`, one or more archs."""

    kind: str
    archs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.archs or len(set(self.archs)) != len(self.archs):
            raise ValueError("target.archs must name at least one architecture, each once")
        for arch in self.archs:
            Target(self.kind, arch)

    @property
    def name(self) -> str:
        """The name used for files: `llvm-x86-64-v3`, or `cuda` where several archs share one."""
        return "cuda" if self.kind == "cuda" else f"{self.kind}-{self.archs[0]}"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON file beside a library; written after the library, so that it vouches for it.

    spec: name of the KernelSpec that the library implements.
    library: file name of the shared object, in the manifest's own directory.
    sha256: hash of that file, 64 lower-case hexadecimal digits.
    entries: operation (`forward`, `forward_lse`) -> arch (`llvm`, or `sm_90` and so on) ->
        name of the exported function.
    alignment: bytes that every data pointer must be a multiple of.
    schedule: the decisions that the code was generated from, and where they came from.
    ptx: the arch whose PTX the library holds too, which the driver of a newer GPU compiles; or "".
    glibc: the oldest version of glibc that has every symbol which the library needs, or "" where
        that is not known.
    versions: tvm, tvm_ffi and, for cuda, the CUDA toolkit that made the library.
    built_at: time of the build, ISO 8601 in UTC.
    """

    schema_version: int = SCHEMA_VERSION
    natc: str = ""
    spec: str
    target: LibraryTarget
    library: str
    sha256: str
    entries: dict[str, dict[str, str]]
    alignment: int = 64
    schedule: dict[str, Any] = {}
    ptx: str = ""
    glibc: str = ""
    versions: dict[str, str | None] = {}
    built_at: str = ""
    provenance: dict[str, Any] = {}

    def __post_init__(self) -> None:
        KernelSpec.parse(self.spec)
        # A manifest must not lead to a file elsewhere: what is loaded is what lies beside it.
        if not self.library or Path(self.library).name != self.library:
            raise ValueError(f"library {self.library!r} must be a file name without a directory")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 lower-case hexadecimal digits")
        if self.alignment < 1 or self.alignment & (self.alignment - 1):
            raise ValueError(f"alignment {self.alignment} must be a power of two")
        if self.ptx and self.ptx not in self.target.archs:
            raise ValueError(f"ptx {self.ptx!r} must be one of target.archs")
        if not re.fullmatch(r"(\d+(\.\d+)*)?", self.glibc):
            raise ValueError(f"glibc {self.glibc!r} must be a version such as 2.28")
        keys = {"llvm"} if self.target.kind == "llvm" else set(self.target.archs)
        if not self.entries:
            raise ValueError("entries must name at least one operation")
        for operation, functions in self.entries.items():
            if set(functions) != keys or not all(functions.values()):
                raise ValueError(
                    f"entries.{operation} must name a function for {', '.join(sorted(keys))}"
                )


class _ManifestHeader(msgspec.Struct):
    schema_version: int
    spec: Any = ""


def dump(manifest: Manifest) -> str:
    """Return a manifest as the text of its file: indented JSON that ends with a newline."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode() + "\n"


def load_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest file.

    Raises LibraryError naming the file when it cannot be read, is damaged, breaks a rule of
    Manifest, or was written by a newer natc.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise LibraryError(f"manifest {path} cannot be read: {reason(error)}.") from error
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Read the content of a manifest file; raises as `load_manifest` does, naming `name`."""
    try:
        # The version comes first: a newer file may differ in everything else.
        header = msgspec.json.decode(data, type=_ManifestHeader)
        version = header.schema_version
        if version > SCHEMA_VERSION:
            raise LibraryError(
                f"manifest {name} has schema version {version}, written by a newer natc; this "
                f"one reads up to {SCHEMA_VERSION}. Upgrade natc: install a newer checkout of it."
            )
        if version < 1:
            raise ValueError(f"schema_version {version} must be 1 or more")
        if version < SCHEMA_VERSION:
            raise LibraryError(
                f"manifest {name} has schema version {version}: an older natc built the library "
                f"of {header.spec}, and its functions take other arguments. Build it again with "
                "natc build, or upgrade the package that it is from."
            )
        return msgspec.json.decode(data, type=Manifest)
    except LibraryError:
        raise
    # ValueError covers msgspec's own errors and text that is not UTF-8.
    except (ValueError, RecursionError, NatcError) as error:
        raise LibraryError(f"manifest {name} is not valid: {str(error).rstrip('.')}.") from error


def schema_version(path: str | os.PathLike[str]) -> int | None:
    """Return the schema version that a manifest file names, or None where it names none.

    Raises OSError where the file cannot be read.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=_ManifestHeader).schema_version
    except (ValueError, RecursionError):
        return None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
