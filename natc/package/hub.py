"""The layout of Hugging Face's `kernels` for libraries that tvm-ffi loads.

A repository holds `build/VARIANT/`, a Python package with `metadata.json`; the variant says which
tvm-ffi, CUDA, processor and system it is for (kernels' "Kernel requirements", version 0.17). The
libraries and manifests lie in its folder `lib`, which may be named in NATC_LIB_PATH, too. Its
folder `_natc` holds copies of the modules of natc that calls need, so that it runs without natc.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from natc.errors import ArgumentError, NatcError
from natc.package.contents import Contents, below, constant, in_order
from natc.package.pieces import Piece, archs_of, kind_of
from natc.package.sources import PACKAGE, modules_of, relative
from natc.store import workspace
from natc.store.files import make_directory, reason, write_atomically

# The interface of tvm-ffi that libraries use has been the same since the first release, 0.1.
_TVM_FFI = "01"
_LICENSE = "apache-2.0"
_METADATA = "metadata.json"


def variants(pieces: Sequence[Piece], machine: str, cuda: Sequence[str]) -> list[str]:
    """Return the names of the variants for some libraries.

    machine: `x86_64` or `aarch64`. cuda: versions such as `13.0`; `kernels` takes a variant if
    torch's CUDA has the same major version and is not older. Raises ArgumentError for a text
    that is not a version.
    """
    if kind_of(pieces) == "llvm":
        return [f"tvm-ffi{_TVM_FFI}-cpu-{machine}-linux"]
    names = []
    for version in cuda:
        match = re.fullmatch(r"(\d{2})\.(\d)", version)
        if match is None:
            raise ArgumentError(f"CUDA version {version!r} is not a version such as 13.0.")
        names.append(f"tvm-ffi{_TVM_FFI}-cu{match[1]}{match[2]}-{machine}-linux")
    return names


def write_variant(
    repository: Path, variant: str, pieces: Sequence[Piece], files: Contents, *, version: int
) -> Path:
    """Write one variant of a repository and return its directory.

    repository: the directory, with the kernel's name. files: libraries, manifests and the list of
    hashes. version: the kernel's major version, for metadata. An older variant of this name is
    replaced. Raises NatcError when it cannot be written.
    """
    name = repository.name
    if not re.fullmatch("[a-z][-a-z0-9]*[a-z0-9]", name):
        raise ArgumentError(
            f"{name!r} cannot be the name of a kernel on the hub, which has small letters, digits "
            "and dashes."
        )
    module = name.replace("-", "_")
    everything = {
        **below(workspace.WHEEL_FOLDER, files),
        **below("_natc", _modules()),
        "__init__.py": constant(_program()),
        # Old releases of `kernels` look for the package one level below.
        f"{module}/__init__.py": constant(_compatibility()),
    }
    directory = repository / "build" / variant
    temporary, old = (
        directory.with_name(f".{variant}.{uuid.uuid4().hex}.{what}") for what in ("tmp", "old")
    )
    try:
        digests = {}
        for member, data in in_order(everything):
            write_atomically(temporary / member, data)
            digests[member] = base64.b64encode(hashlib.sha256(data).digest()).decode()
        metadata = _metadata(name, module, variant, pieces, digests, version)
        write_atomically(temporary / _METADATA, metadata)
        make_directory(directory.parent)
        if directory.exists():
            # In one step, so that a kill never leaves a part of it.
            directory.rename(old)
        temporary.rename(directory)
    except OSError as error:
        raise NatcError(f"directory {directory} cannot be written: {reason(error)}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not directory.exists():
            # If this fails too, the next writer does it.
            with contextlib.suppress(OSError):
                old.rename(directory)
        else:
            shutil.rmtree(old, ignore_errors=True)
    return directory


def remove_unfinished(repository: Path) -> None:
    """Remove the temporary files of killed writers; no writer may be at work in the repository.

    If a killed writer moved a variant away and wrote no new one, the old variant comes back.
    """
    for path in (repository / "build").glob(".tvm-ffi*.old"):
        variant = path.with_name(path.name[1:].rsplit(".", 2)[0])
        with contextlib.suppress(OSError):
            if not variant.exists():
                path.rename(variant)
    for what in ("tmp", "old"):
        for path in (repository / "build").glob(f".tvm-ffi*.{what}"):
            shutil.rmtree(path, ignore_errors=True)


def _metadata(
    name: str,
    module: str,
    variant: str,
    pieces: Sequence[Piece],
    digests: dict[str, str],
    version: int,
) -> bytes:
    kind = kind_of(pieces)
    # One process may load several versions: equal for equal files, and unique otherwise.
    listed = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    short = hashlib.sha256(listed.encode()).hexdigest()[:10]
    backend: dict[str, object] = {"type": "cuda" if kind == "cuda" else "cpu"}
    if kind == "cuda":
        backend["archs"] = [_capability(arch, pieces) for arch in archs_of(pieces)]
    content = {
        "name": name,
        "id": f"_{module}_{variant.replace('-', '_')}_{short}",
        "version": version,
        "license": _LICENSE,
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": dict(sorted(digests.items()))},
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _capability(arch: str, pieces: Sequence[Piece]) -> str:
    number = arch.removeprefix("sm_")
    # Without it, `kernels` would refuse GPUs that are newer than all architectures.
    ptx = "+PTX" if all(piece.manifest.ptx == arch for piece in pieces) else ""
    return f"{number[:-1]}.{number[-1]}{ptx}"


def _modules() -> Contents:
    """Return the files of natc's modules that calls need, by path in natc's folder."""
    files = {"__init__.py": constant(b'"""The modules of natc that run its kernels."""\n')}
    for name, file in modules_of("natc.functional").items():
        files[str(file.relative_to(PACKAGE))] = constant(relative(name, file))
    return files


def _program() -> bytes:
    """Return the source of the package itself."""
    return f'''"""Neighborhood attention on compiled kernels, for 1, 2 and 3 axes, with gradients.

Generated by natc. Needs torch and tvm_ffi. It runs the kernels in `lib`; a call that none of them
covers runs in plain PyTorch, with a warning. natc finds these kernels, too: name `lib` in
NATC_LIB_PATH.
"""

from pathlib import Path

from ._natc.functional import na1d, na2d, na3d
from ._natc.store import workspace

__all__ = ["na1d", "na2d", "na3d"]

workspace.use_only(Path(__file__).parent / "{workspace.WHEEL_FOLDER}")
'''.encode()


def _compatibility() -> bytes:
    return b'''"""The same as the package above."""

import importlib.util
import sys
from pathlib import Path

_path = Path(__file__).parent.parent / "__init__.py"
_name = f"{__name__}_flat"
_spec = importlib.util.spec_from_file_location(_name, _path)
_module = importlib.util.module_from_spec(_spec)
sys.modules[_name] = _module
_spec.loader.exec_module(_module)
__all__ = _module.__all__
globals().update({name: getattr(_module, name) for name in __all__})
'''
