"""Writing wheels and archives whose bytes depend on nothing but their contents.

Times, owners, permissions and order are fixed. zlib compresses, so another version of zlib may
write other bytes for the same contents.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from natc.errors import NatcError
from natc.package.contents import Contents, in_order
from natc.store.files import make_directory, reason

_MODE = 0o644
# The earliest time that a zip file can hold, 1980-01-01.
_ZIP_BEGIN = 315532800
GENERATOR = "natc"


def write_wheel(
    path: Path, files: Contents, *, metadata: str, entry_points: str, epoch: int
) -> Path:
    """Write a wheel and return its path, whose name follows the format of wheels.

    files: the files to install. metadata, entry_points: the text of these two files. epoch: the
    time of all files, in seconds since 1970. Raises NatcError when it cannot be written.
    """
    name, version, *tag = path.name.removesuffix(".whl").split("-")
    folder = f"{name}-{version}.dist-info"
    described = {
        f"{folder}/METADATA": metadata,
        f"{folder}/WHEEL": (
            f"Wheel-Version: 1.0\nGenerator: {GENERATOR}\nRoot-Is-Purelib: false\n"
            f"Tag: {'-'.join(tag)}\n"
        ),
        f"{folder}/entry_points.txt": entry_points,
    }
    record = []

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in in_order(files):
                _add(archive, member, data, epoch)
                record.append(_recorded(member, data))
            # The format recommends these at the end, where installers read them first.
            for member, text in described.items():
                _add(archive, member, text.encode(), epoch)
                record.append(_recorded(member, text.encode()))
            record.append(f"{folder}/RECORD,,")
            _add(archive, f"{folder}/RECORD", ("\n".join(record) + "\n").encode(), epoch)

    return _write(path, write)


def write_zip(path: Path, files: Contents, *, epoch: int) -> Path:
    """Write a zip archive and return its path; epoch: the time of its files."""

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in in_order(files):
                _add(archive, member, data, epoch)

    return _write(path, write)


def write_tar(path: Path, files: Contents, *, epoch: int) -> Path:
    """Write a tar.gz and return its path; epoch: the time of its files."""

    def write(file: IO[bytes]) -> None:
        # Neither the name nor the time of the tar file is in the gzip header.
        with (
            gzip.GzipFile("", "wb", 9, file, mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for member, data in in_order(files):
                info = tarfile.TarInfo(member)
                info.size, info.mtime, info.mode = len(data), epoch, _MODE
                archive.addfile(info, io.BytesIO(data))

    return _write(path, write)


def remove_unfinished(directory: Path) -> None:
    """Remove the temporary files of killed writers; no writer may be at work in the directory."""
    for suffix in (".whl", ".tar.gz", ".zip"):
        for path in directory.glob(f".natc[-_]kernels*{suffix}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def _add(archive: zipfile.ZipFile, member: str, data: bytes, epoch: int) -> None:
    info = zipfile.ZipInfo(member, time.gmtime(max(epoch, _ZIP_BEGIN))[:6])
    info.create_system = 3  # Unix, whose permissions follow.
    info.external_attr = (0o100000 | _MODE) << 16
    archive.writestr(info, data, zipfile.ZIP_DEFLATED, 9)


def _recorded(member: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{member},sha256={digest},{len(data)}"


def _write(path: Path, write: Callable[[IO[bytes]], None]) -> Path:
    """Write a file in one step: a kill leaves no file, or the old file."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise NatcError(f"file {path} cannot be written: {reason(error)}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
