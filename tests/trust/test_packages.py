"""Damaged and hostile packages are findings of `natc verify`, and take little time and memory."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.library_files import library_of
from support.mutations import demand, fuzz, mutations
from support.tiny_library import add_library

from natc.package import assemble
from natc.package.containers import open_container
from natc.package.pieces import read_pieces
from natc.package.portable import glibc_problem, needs_problems
from natc.package.verify import verify_path
from natc.store import elf, fatbin
from natc.store.manifest import load_manifest

pytestmark = pytest.mark.quick

Record = Callable[[str, object], None]
MIB = 1 << 20


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of a small library in each format that is one file; nobody changes these."""
    folder = tmp_path_factory.mktemp("packages")
    add_library(folder / "lib")
    pieces = read_pieces(folder / "lib", 0)
    forms = ("wheel", "archive", "zip")
    written = assemble.write(forms, pieces, assemble.names_of(pieces, "1.0"), folder, when=0)
    return dict(written)


def copy(package: Path, place: Path) -> Path:
    path = place / package.name
    path.write_bytes(package.read_bytes())
    return path


def contents(path: Path) -> dict[str, bytes]:
    """The files of an archive, as the standard library reads them."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    with zipfile.ZipFile(path) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def problems(path: Path) -> list[str]:
    """All findings, each in one line that a terminal can show."""
    report = verify_path(path)
    texts = report.problems + [text for row in report.rows for text in row.problems]
    for text in (*texts, *(row.library for row in report.rows)):
        demand(text.isprintable(), f"not printable: {text!r}")
    demand(report.ok is (not texts), f"{report}")
    return texts


@contextmanager
def little_is_needed() -> Iterator[None]:
    """Check that what follows takes little time and memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert time.process_time() - start < 3
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


# Damage


@pytest.mark.parametrize(("form", "seed"), [("wheel", 11), ("archive", 12), ("zip", 13)])
def test_each_damaged_package_is_reported_unless_its_files_are_the_same(
    packages: dict[str, Path], place: Path, form: str, seed: int, record_property: Record
) -> None:
    path = copy(packages[form], place)
    files = contents(path)
    assert problems(path) == []

    def check() -> str:
        if problems(path):
            return "reported"
        demand(contents(path) == files, "nothing is reported, and the files differ")
        return "of the same files"

    ends = fuzz(path, check, seed=seed, count=300)
    assert ends["reported"] > 0.8 * sum(ends.values())
    record_property("mutations", (form.replace("archive", "tar.gz"), ends))
    # A download that was cut off is always reported.
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 50):
        path.write_bytes(data[:length])
        assert problems(path), length


@pytest.mark.parametrize("form", ["wheel", "archive", "zip"])
def test_one_damaged_file_is_one_finding(
    packages: dict[str, Path], place: Path, form: str
) -> None:
    for name, data in contents(packages[form]).items():
        path = rewritten(packages[form], place, {name: data[:3] + bytes([data[3] ^ 1]) + data[4:]})
        # A changed name in RECORD looks like two files; without its entry point, natc does not
        # find a wheel.
        twice = name.endswith(("RECORD", "entry_points.txt"))
        assert len(problems(path)) == 1 + twice, name


def rewritten(package: Path, place: Path, changes: dict[str, bytes]) -> Path:
    """A copy of a package with other contents of some files."""
    path, files = place / package.name, contents(package) | changes
    if package.name.endswith(".tar.gz"):
        with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("RECORD", b"a\n"),
        ("RECORD", b"a,\0,\n"),
        ("RECORD", b"a," + b"x" * 200_000),
        ("RECORD", b"\xff"),
        (".sha256", b"z" * 64 + b"  x.so\n"),
        (".sha256", b"0" * 64 + b"  ../x.so\n"),
        ("2.json", b"[" * 200_000),
        ("2.json", b'{"schema_version": ' + b"9" * 5000 + b"}"),
        ("entry_points.txt", b""),
    ],
    ids=range(9),
)
def test_a_file_of_another_format_is_reported(
    packages: dict[str, Path], place: Path, file: str, content: bytes
) -> None:
    (name,) = [name for name in contents(packages["wheel"]) if name.endswith(file)]
    assert problems(rewritten(packages["wheel"], place, {name: content}))


# Names


BAD = {
    "../evil": "would be written outside",
    "/etc/evil": "would be written outside",
    "a/../../evil": "would be written outside",
    "./evil": "is not a plain name",
    "a//evil": "is not a plain name",
    "a\\evil": "is not a plain name",
    "a\x1b[2Jevil": "is not a plain name",
}


@pytest.mark.parametrize("form", ["archive", "zip"])
@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_a_name_that_leads_elsewhere_is_reported_and_not_read(
    packages: dict[str, Path], place: Path, form: str, name: str
) -> None:
    path = rewritten(packages[form], place, {name: b"evil"})
    (problem,) = problems(path)
    assert problem == f"holds {name!a}, which {BAD[name]}" + (
        " the folder it is unpacked into" if "outside" in BAD[name] else ""
    )
    assert name not in open_container(path).names()


def test_what_is_no_plain_file_of_a_tar_is_reported(
    packages: dict[str, Path], place: Path
) -> None:
    path = rewritten(packages["archive"], place, {})
    kinds = {
        "soft": tarfile.SYMTYPE,
        "hard": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "pipe": tarfile.FIFOTYPE,
        "sparse": tarfile.GNUTYPE_SPARSE,
    }
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in (
            "twice",
            "twice",
            "both",
            "both/file",
            b"\xff".decode("utf-8", "surrogateescape"),
        ):
            archive.addfile(tarfile.TarInfo(name))
    assert sorted(problems(path)) == sorted(
        [
            *(f"holds '{name}', which is neither a file nor a folder" for name in kinds),
            "holds 'both', as a file and as a folder",
            "holds 'twice', more than once",
            "holds '\\udcff', which is not a plain name",
            "holds no library",
        ]
    )


def test_links_and_names_that_occur_twice_in_a_zip_are_reported(
    packages: dict[str, Path], place: Path
) -> None:
    path = rewritten(packages["zip"], place, {})
    with zipfile.ZipFile(path, "a") as packed, pytest.warns(UserWarning, match="Duplicate name"):
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
        packed.writestr("twice", b"1")
        packed.writestr("twice", b"2")
        packed.writestr("lzma", b"3" * 100, zipfile.ZIP_LZMA)
    assert problems(path) == [
        "holds 'link', which is neither a file nor a folder",
        "holds 'twice', more than once",
        "lzma is compressed by method 14, not deflated",
    ]


# Bombs


def zeros(mebibytes: int) -> bytes:
    """Deflated zeros, in a thousandth of the size and in no time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + packer.flush()


def zip_of(name: bytes, packed: bytes, size: int) -> bytes:
    """A zip archive of a file that says to have a size."""
    local = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, 0, len(packed), size, len(name), 0
    )
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, 0, len(packed), size, len(name), *[0] * 6
    )
    offset = len(local + name + packed)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry + name), offset, 0)
    return local + name + packed + entry + name + end


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def gzip_of(start: bytes, mebibytes: int) -> bytes:
    """A gzip file of some bytes and then zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + first + zeros(mebibytes)


BOMBS = {
    "bomb.zip": lambda: zip_of(b"a/na2d.so", zeros(4096), (4096 << 20) - 2),
    "bomb.whl": lambda: zip_of(b"a/na2d.json", zeros(4096), (4096 << 20) - 2),
    "lies.zip": lambda: zip_of(b"a/na2d.json", zeros(4096), 1000),
    "file.tar.gz": lambda: gzip_of(tar_header("a/na2d.so", 4096 << 20), 4096),
    "header.tar.gz": lambda: gzip_of(tar_header("a", 4096 << 20, tarfile.GNUTYPE_LONGNAME), 4096),
    "pax.tar.gz": lambda: gzip_of(tar_header("a", 4096 << 20, tarfile.XHDTYPE), 4096),
    "link.tar.gz": lambda: gzip_of(tar_header("a", 4096 << 20, tarfile.SYMTYPE), 4096),
    "end.tar.gz": lambda: gzip_of(b"", 4096),
    "files.tar.gz": lambda: b"".join(
        gzip.compress(tar_header(f"a/{number}.so", MIB) + bytes(MIB), 1) for number in range(100)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(place: Path, name: str) -> None:
    (place / name).write_bytes(BOMBS[name]())
    with little_is_needed():
        (problem, *_) = problems(place / name)
    words = {
        "lies": "is damaged in the archive",
        "bomb": "times its own size, as no package of libraries does",
        "file": "times its own size, as no package of libraries does",
        "files": "times its own size, as no package of libraries does",
    }
    assert words.get(name.partition(".")[0], "is too long") in problem


def test_a_large_file_is_not_read(place: Path) -> None:
    path = add_library(place / "lib")
    with open(library_of(path), "r+b") as file:
        file.truncate(2048 * MIB)
    with little_is_needed():
        assert problems(path.parent) == [f"has {2048 * MIB} bytes, more than natc reads"]


# Libraries


def test_a_damaged_library_is_read_or_refused(place: Path, record_property: Record) -> None:
    path = library_of(add_library(place / "lib"))
    data = path.read_bytes()

    def check() -> str:
        damaged = path.read_bytes()
        try:
            library = elf.read(damaged)
        except elf.ElfError as error:
            demand("\n" not in str(error), str(error))
            return "refused"
        demand(len(damaged) >= len(data) or not data.startswith(damaged), "it is cut short")
        needs_problems(library)
        glibc_problem(library)
        return "read"

    record_property("mutations", ("library", fuzz(path, check, seed=14, count=400)))
    for length in range(0, len(data), 97):
        with pytest.raises(elf.ElfError):
            elf.read(data[:length])


def test_a_damaged_fatbin_is_read_without_the_entries_that_are_cut(
    record_property: Record,
) -> None:
    entries = [(2, 80, b"a" * 40), (1, 90, b"b" * 64), (2, 120, b"c" * 8)]
    body = b"".join(
        struct.pack("<HHIQ", kind, 0x101, 64, len(content)).ljust(28, b"\0")
        + struct.pack("<I", arch).ljust(36, b"\0")
        + content
        for kind, arch, content in entries
    )
    section = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body
    whole = fatbin.images(section * 2)
    assert [image.arch for image in whole] == ["sm_80", "compute_90", "sm_120"] * 2
    ends = {"whole": 0, "other entries": 0}
    for damaged in mutations(section * 2, 15, 300):
        images = fatbin.images(damaged)
        demand(sum(len(image.content) for image in images) <= len(damaged), "entries overlap")
        demand(all(image.content in damaged for image in images), "an entry is not in it")
        ends["whole" if images == whole else "other entries"] += 1
    record_property("mutations", ("fatbin", ends))
    for length in range(len(section)):
        assert len(fatbin.images(section[:length])) < 3


class Elf:
    """A shared library of some sections, with the fields that a hostile one would have."""

    def __init__(self) -> None:
        self.sections: list[bytes] = []
        self.data = bytearray(64)

    def add(self, kind: int, content: bytes, *, name: int = 0, link: int = 0) -> int:
        """Add a section; return its number."""
        return self.refer(kind, self.put(content), len(content), name=name, link=link)

    def put(self, content: bytes) -> int:
        self.data += content
        return len(self.data) - len(content)

    def refer(self, kind: int, offset: int, size: int, *, name: int = 0, link: int = 0) -> int:
        self.sections.append(
            struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, link, 0, 0, 0)
        )
        return len(self.sections) - 1

    def file(self, names: int) -> bytes:
        header = struct.pack(
            "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 0, len(self.data), 0,
            64, 0, 0, 64, len(self.sections), names,
        )  # fmt: skip
        return bytes(header + self.data[64:] + b"".join(self.sections))


def hostile(what: str) -> bytes:
    """A library that a careless reader reads for hours, or copies a thousand times."""
    library = Elf()
    strings = library.add(
        3, b"\0.nv_fatbin\0GLIBC_2.2\0" + b"x" * (what == "name") * 5 * MIB + b"\0"
    )
    library.add(6, b"", link=strings)
    library.add(11, bytes(24) + struct.pack("<IBBHQQ", 22, 0, 0, 0, 0, 0) * 1000, link=strings)
    if what == "versions":
        need = struct.pack("<HHIII", 1, 65535, 0, 16, 16) + struct.pack("<IHHII", 0, 0, 2, 12, 0)
        library.add(0x6FFFFFFE, need * 10_000, link=strings)
        library.add(0x6FFFFFFF, b"\2\0" * 1001, link=strings)
    if what == "no versions":
        library.add(0x6FFFFFFE, struct.pack("<HHIII", 1, 0, 0, 16, 1) + b"\1\0" * 2 * MIB)
        library.add(0x6FFFFFFF, b"\2\0" * 1001, link=strings)
    if what == "device code":
        start = library.put(bytes(MIB))
        for _ in range(5000):
            library.refer(1, start, MIB, name=1)
    return library.file(strings)


@pytest.mark.parametrize(
    ("what", "refused"),
    [
        ("", False),
        ("versions", True),
        ("no versions", False),
        ("name", True),
        ("device code", True),
    ],
)
def test_a_hostile_library_takes_no_longer_than_another(what: str, refused: bool) -> None:
    data = hostile(what)
    with little_is_needed():
        if refused:
            with pytest.raises(elf.ElfError):
                elf.read(data)
        else:
            assert len(elf.read(data).undefined) in (0, 1000)


def test_versions_that_are_no_numbers_are_compared(place: Path) -> None:
    """Digits of other alphabets, and too many of them."""
    assert elf.parse_version("2.²") == (2,)
    path = add_library(place / "lib")
    assert load_manifest(path).glibc == ""
    symbol = elf.Symbol("f", "GLIBC_²", weak=False)
    library = elf.SharedLibrary("x86_64", (), (), (symbol,), b"")
    assert glibc_problem(library) is None and library.glibc == (0,)
