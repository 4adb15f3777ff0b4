"""Libraries and their manifests as files: finding and rewriting them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from natc.store.libraries import write_library
from natc.store.manifest import Manifest, load_manifest


def library_of(manifest: Path) -> Path:
    """Return the library that a manifest file names."""
    return manifest.with_name(load_manifest(manifest).library)


def manifest_of(library: Path) -> Path:
    """Return the manifest file of a library, `SPEC.TARGET.HASH.so`."""
    return library.with_suffix("").with_suffix(".json")


def add_code(directory: Path, code: bytes, **fields: Any) -> Path:
    """Write some code as a library, with a manifest that names it; return the manifest's path.

    fields: of the manifest.
    """
    sha256 = hashlib.sha256(code).hexdigest()
    return write_library(directory, Manifest(sha256=sha256, **fields), code)


def rewrite(manifest: Path, code: bytes | None = None, **changes: Any) -> Path:
    """Replace a library by other code, or fields of its manifest; return the manifest's path."""
    code = library_of(manifest).read_bytes() if code is None else code
    sha256 = hashlib.sha256(code).hexdigest()
    fields = dataclasses.replace(load_manifest(manifest), sha256=sha256, **changes)
    return write_library(manifest.parent, fields, code)
