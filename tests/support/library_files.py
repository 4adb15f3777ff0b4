"""Libraries and their manifests as files: finding and rewriting them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from natc.spec import KernelSpec
from natc.store.json_object import with_checksum
from natc.store.libraries import write_library
from natc.store.manifest import LibraryTarget, Manifest, entries_of, load_manifest


def library_of(manifest: Path) -> Path:
    """Return the library that a manifest file names."""
    return manifest.with_name(load_manifest(manifest).library)


def manifest_of(library: Path) -> Path:
    """Return the manifest file of a library, `SPEC.TARGET.HASH.so`."""
    return library.with_suffix("").with_suffix(".json")


def make_manifest(
    spec: KernelSpec,
    target: LibraryTarget,
    operations: Iterable[str] = ("forward",),
    sha256: str = "0" * 64,
    **fields: Any,
) -> Manifest:
    """Return the manifest of a library that holds some operations; fields: its other fields."""
    entries = entries_of(spec, target.targets, operations)
    return Manifest(spec=spec.name, target=target, entries=entries, sha256=sha256, **fields)


def add_code(directory: Path, code: bytes, *arguments: Any, **fields: Any) -> Path:
    """Write some code as a library, with a manifest that names it; return the manifest's path.

    arguments, fields: of `make_manifest`.
    """
    sha256 = hashlib.sha256(code).hexdigest()
    return write_library(directory, make_manifest(*arguments, sha256=sha256, **fields), code)


def rewrite(manifest: Path, code: bytes | None = None, **changes: Any) -> Path:
    """Replace a library by other code, or fields of its manifest; return the manifest's path.

    Functions are named as the spec and the target demand, whatever their names in the code.
    """
    code = library_of(manifest).read_bytes() if code is None else code
    old = load_manifest(manifest)
    names = [field.name for field in dataclasses.fields(old) if field.init]
    fields = {name: getattr(old, name) for name in names} | changes
    spec, operations = KernelSpec.parse(fields.pop("spec")), fields.pop("entries")
    fields["sha256"] = hashlib.sha256(code).hexdigest()
    new = make_manifest(spec, operations=operations, **fields)
    return write_library(manifest.parent, new, code)


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file of natc's, and its checksum."""
    content = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(with_checksum(content)))
