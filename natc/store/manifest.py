"""The manifest of a kernel library: which functions the library holds, and how it was built.

A library is named after its content, `SPEC.TARGET.HASH.so`; its manifest `SPEC.TARGET.json` names
it. A manifest is replaced in one step, so a reader sees the old manifest with the old library or
the new manifest with the new library. A function's name says which operation of which kernel it
computes, so a library cannot serve a call of another kernel, whatever its manifest says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO, get_origin, get_type_hints

from natc.errors import LibraryError, NatcError
from natc.operations import operations_of
from natc.spec import KernelSpec
from natc.store.files import reason
from natc.store.json_object import OtherVersion, parse, with_checksum
from natc.targets import Target

# 2: functions take strides, causal flags and the heads that share a head of key and value.
# 3: libraries are named after their content.
# 4: names of functions end with the architecture and this version; manifests have a checksum.
# 5: gradients take a correction of the logsumexp, which `delta` computes.
SCHEMA_VERSION = 5
SUFFIX = ".json"
# Data pointers are multiples of this for each kind of target: generated code relies on it.
ALIGNMENT = {"llvm": 64, "cuda": 16}
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class LibraryTarget:
    """The machines a library holds code for: kind `llvm` or `cuda`, at least one arch."""

    kind: str
    archs: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "archs", tuple(self.archs))  # a list in JSON
        if not self.archs or len(set(self.archs)) != len(self.archs):
            raise ValueError("target.archs must name at least one architecture, each once")
        for arch in self.archs:
            Target(self.kind, arch)

    @property
    def targets(self) -> list[Target]:
        """The target of each arch."""
        return [Target(self.kind, arch) for arch in self.archs]

    @property
    def name(self) -> str:
        """The name used for files: `llvm-x86-64-v3`, or `cuda`, which several archs share."""
        return "cuda" if self.kind == "cuda" else f"{self.kind}-{self.archs[0]}"


def function_name(spec: KernelSpec, operation: str, target: Target) -> str:
    """Return the name of the function that a library exports for an operation on a target.

    It says everything that a caller relies on; the version stands for the calling convention.
    """
    arch = target.arch.replace("-", "_")
    return f"{spec.name}_{operation}_{arch}_abi{SCHEMA_VERSION}"


def entries_of(
    spec: KernelSpec, targets: Iterable[Target], operations: Iterable[str]
) -> dict[str, dict[str, str]]:
    """Return the `entries` of a manifest: operation -> arch, or `llvm` -> name of the function."""
    keys = {"llvm" if target.kind == "llvm" else target.arch: target for target in targets}
    return {
        operation: {key: function_name(spec, operation, target) for key, target in keys.items()}
        for operation in operations
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The JSON file beside a library, written after it.

    spec: name of the KernelSpec that the library implements.
    sha256: hash of the library's file, 64 lower-case hexadecimal digits.
    entries: from `entries_of`, for at least one operation of the spec.
    alignment: bytes that every data pointer must be a multiple of; follows from the target.
    schedule: the decisions that the code was generated from, and where they came from.
    ptx: the arch whose PTX the library holds too, which the driver of a newer GPU compiles; or "".
    glibc: the oldest glibc with every symbol that the library needs, or "" if that is unknown.
    versions: tvm, tvm_ffi and, for cuda, the CUDA toolkit that made the library.
    built_at: time of the build, ISO 8601 in UTC.
    library: file name of the library, in the manifest's directory; follows from the fields above.

    No msgspec here: packages for the hub read manifests with the standard library alone.
    """

    schema_version: int = SCHEMA_VERSION
    natc: str = ""
    spec: str
    target: LibraryTarget
    library: str = field(init=False)
    sha256: str
    entries: dict[str, dict[str, str]]
    alignment: int = field(init=False)
    schedule: dict[str, Any] = field(default_factory=dict)
    ptx: str = ""
    glibc: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    built_at: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = KernelSpec.parse(self.spec)
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 lower-case hexadecimal digits")
        object.__setattr__(self, "library", f"{self.name}.{self.sha256[:_HASH_DIGITS]}.so")
        object.__setattr__(self, "alignment", ALIGNMENT[self.target.kind])
        if self.ptx and self.ptx not in self.target.archs:
            raise ValueError(f"ptx {self.ptx!r} must be one of target.archs")
        if not re.fullmatch(r"(\d+(\.\d+)*)?", self.glibc):
            raise ValueError(f"glibc {self.glibc!r} must be a version such as 2.28")
        if not self.entries:
            raise ValueError("entries must name at least one operation")
        unknown = sorted(self.entries.keys() - operations_of(spec, kind=self.target.kind))
        if unknown:
            raise ValueError(f"entries names {', '.join(unknown)}, which {spec} does not have")
        expected = entries_of(spec, self.target.targets, self.entries)
        for operation, functions in expected.items():
            if self.entries[operation] != functions:
                raise ValueError(f"entries.{operation} must be {functions}")

    @property
    def name(self) -> str:
        """The name of the manifest's file, without its ending: `SPEC.TARGET`."""
        return f"{self.spec}.{self.target.name}"


# The JSON type of each field.
_TYPES = {name: get_origin(hint) or hint for name, hint in get_type_hints(Manifest).items()}
_TYPES["target"] = dict


def dump(manifest: Manifest) -> str:
    """Return a manifest as the text of its file: indented JSON that ends with a newline."""
    return json.dumps(with_checksum(dataclasses.asdict(manifest)), indent=2) + "\n"


def load_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest file.

    Raises LibraryError naming the file when it cannot be read, is damaged, breaks a rule of
    Manifest, lies under the name of another manifest, or has another version.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise LibraryError(f"manifest {path} cannot be read: {reason(error)}.") from error
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Read the content of a manifest file; raises as `load_manifest` does, naming `name`."""
    try:
        manifest = _manifest(parse(data, SCHEMA_VERSION))
        if PurePath(name).name != f"{manifest.name}{SUFFIX}":
            raise ValueError(f"the name of its file must be {manifest.name}{SUFFIX}")
        return manifest
    except OtherVersion as error:
        if error.version > SCHEMA_VERSION:
            raise LibraryError(
                f"manifest {name} has schema version {error.version}, written by a newer natc; "
                f"this one reads {SCHEMA_VERSION}. Upgrade natc: install a newer checkout of it."
            ) from error
        raise LibraryError(
            f"manifest {name} has schema version {error.version}: an older natc built the library "
            f"of {error.content.get('spec')}. Build it again with natc build, or upgrade the "
            "package that it is from."
        ) from error
    # ValueError covers text that is not JSON or not UTF-8, TypeError wrong JSON types.
    except (ValueError, TypeError, NatcError) as error:
        raise LibraryError(f"manifest {name} is not valid: {str(error).rstrip('.')}.") from error


def _manifest(content: dict[str, Any]) -> Manifest:
    fields = {name: content[name] for name in _TYPES if name in content}
    missing = {"spec", "target", "library", "sha256", "entries", "alignment"} - fields.keys()
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    for name, value in fields.items():
        if type(value) is not _TYPES[name]:
            raise ValueError(f"{name} must be a JSON {_TYPES[name].__name__}")
    derived = {name: fields.pop(name) for name in ("library", "alignment")}
    manifest = Manifest(target=LibraryTarget(**fields.pop("target")), **fields)
    for name, value in derived.items():
        if value != getattr(manifest, name):
            raise ValueError(f"{name} {value!r} must be {getattr(manifest, name)}")
    return manifest


def schema_version(path: str | os.PathLike[str]) -> int | None:
    """Return the schema version in a manifest file, or None if it has none.

    Raises OSError if the file cannot be read.
    """
    try:
        parse(Path(path).read_bytes(), SCHEMA_VERSION)
    except OtherVersion as error:
        return error.version
    except ValueError:
        return None
    return SCHEMA_VERSION


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content as 64 lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file, from its position on, as `file_sha256` does."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
