"""Paths of natc's files: schedules and logs (workspace), libraries (cache), packaged data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from natc import env
from natc.operations import CALLED_TOGETHER, FORWARD
from natc.spec import KernelSpec
from natc.targets import Target

_PACKAGE = Path(__file__).resolve().parents[1]
PACKAGED_DATA = _PACKAGE / "_data"

# Wheels of libraries name their package in this group; its folder `lib` holds the libraries.
ENTRY_POINTS = "natc.kernels"
WHEEL_FOLDER = "lib"

# The directories of `use_library_dir`, and the directory of `use_only`.
_used: list[Path] = []
_only: list[Path] = []


@dataclass(frozen=True, slots=True)
class LibraryPlace:
    """A directory that natc searches for libraries, and the reason why it does.

    source: `named in the program`, `NATC_LIB_PATH`, `wheel NAME VERSION`, `cache`, `natc`, or
        `package` for the only directory of a package that carries natc.
    distribution: the name of the wheel that brought it, for pip; None if none did.
    """

    path: Path
    source: str
    distribution: str | None = None


def checkout() -> Path | None:
    """Return the root of the source checkout that natc runs from, or None when installed."""
    root = _PACKAGE.parent
    is_checkout = (root / "pyproject.toml").is_file() and (root / "schedules").is_dir()
    return root if is_checkout else None


# The directory of the schedules and logs that come with natc.
SHIPPED = checkout() or PACKAGED_DATA


def workspace() -> Path:
    """Return the directory that holds `schedules/` and `tuning_logs/`; it may not exist yet."""
    named = env.NATC_WORKSPACE.path()
    return named or checkout() or _user_directory("user_data_path")


def read_roots() -> list[Path]:
    """Return the directories to read schedules and logs from; the first match wins."""
    return list(dict.fromkeys((workspace(), SHIPPED)))


def tuned_name(spec: KernelSpec, operation: str) -> str:
    """Return the file name, without ending, of an operation's schedule and log."""
    return spec.name if operation == FORWARD else f"{spec.name}.{operation}"


def schedule_path(spec: KernelSpec, target: Target, operation: str = FORWARD) -> Path:
    """Return the file that the schedule of a kernel's operation is written to."""
    return workspace() / "schedules" / target.name / f"{tuned_name(spec, operation)}.json"


def log_path(spec: KernelSpec, target: Target, operation: str = FORWARD) -> Path:
    """Return the file that the tuning records of a kernel's operation are appended to."""
    return workspace() / "tuning_logs" / target.name / f"{tuned_name(spec, operation)}.jsonl"


def find_schedule(
    spec: KernelSpec, target: Target, operation: str = FORWARD, *, but: Path | None = None
) -> Path | None:
    """Return the schedule file that natc uses for a kernel's operation, or None.

    but: a file to pass over.
    """
    return _find(Path("schedules") / target.name / f"{tuned_name(spec, operation)}.json", but)


def find_log(spec: KernelSpec, target: Target, operation: str = FORWARD) -> Path | None:
    """Return the log that natc reads of a kernel's operation, or None."""
    return _find(Path("tuning_logs") / target.name / f"{tuned_name(spec, operation)}.jsonl", None)


def schedule_files(target: Target | None = None) -> Iterator[Path]:
    """Yield every schedule file, of one target or all, sorted by target and spec name."""
    return _files("schedules", f"{target.name if target else '*'}/*.json")


def log_files() -> Iterator[Path]:
    """Yield every tuning log that natc uses, sorted by target and spec name."""
    return _files("tuning_logs", "*/*.jsonl")


def cache_dir() -> Path:
    """Return the directory for files that can be built again; it may not exist yet."""
    return env.NATC_CACHE_DIR.path() or _user_directory("user_cache_path")


def _user_directory(kind: str) -> Path:
    # Late: packages that carry natc run without platformdirs.
    import platformdirs

    path: Path = getattr(platformdirs, kind)("natc", appauthor=False)
    return path


def library_dir() -> Path:
    """Return the library directory that `natc build` writes to by default."""
    return cache_dir() / "lib"


def jit_dir(group: str) -> Path:
    """Return the directory of libraries that first calls built, for an entry of CALLED_TOGETHER.

    Each group has its own, so a library that a call builds replaces no library of another group.
    """
    return cache_dir() / "jit" / group


def use_library_dir(directory: str | Path) -> None:
    """Search a directory for libraries before all others, in this process."""
    path = Path(directory).expanduser().absolute()
    if path in _used:
        _used.remove(path)
    _used.insert(0, path)


def use_only(directory: Path) -> None:
    """Search no directory for libraries but this one, in this process; calls then build none."""
    _only[:] = [directory.absolute()]


def only_directory() -> Path | None:
    """Return the directory that `use_only` was called with, or None."""
    return _only[0] if _only else None


def library_places() -> list[LibraryPlace]:
    """Return the places that natc searches for libraries, in order; some may not exist.

    Directories named in the program, directories in NATC_LIB_PATH, installed wheels of libraries,
    the output of `natc build`, libraries that were built when first called (unless NATC_JIT=off),
    and natc's own (unless NATC_TRUSTED_KEYS is set). Reads the metadata of installed packages and
    imports none.
    """
    if _only:
        return [LibraryPlace(_only[0], "package")]
    return [
        *(LibraryPlace(path, "named in the program") for path in _used),
        *(LibraryPlace(path, env.NATC_LIB_PATH.name) for path in env.NATC_LIB_PATH.paths()),
        *_wheels(),
        LibraryPlace(library_dir(), "cache"),
        *(LibraryPlace(jit_dir(group), env.NATC_JIT.name) for group in _jit_groups()),
        *_own(),
    ]


def library_dirs() -> list[Path]:
    """Return the directories of `library_places`."""
    return [place.path for place in library_places()]


def library_place(directory: Path) -> LibraryPlace | None:
    """Return the first place with this directory, or None."""
    return next((place for place in library_places() if place.path == directory), None)


def _jit_groups() -> tuple[str, ...]:
    return () if env.NATC_JIT.word() == "off" else CALLED_TOGETHER


def library_sources() -> dict[Path, str]:
    """Return the source of each directory of `library_places`."""
    return {place.path: place.source for place in reversed(library_places())}


def _own() -> list[LibraryPlace]:
    # Nobody signs the kernels in natc's wheel. A call that chose one would raise an error, where
    # the reference can serve it.
    if env.NATC_TRUSTED_KEYS.get():
        return []
    return [LibraryPlace(PACKAGED_DATA / "lib", "natc", "natc")]


def _wheels() -> list[LibraryPlace]:
    places: dict[Path, LibraryPlace] = {}
    for point in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        path = _package_folder(point)
        if path is not None and point.dist is not None:
            name, version = point.dist.metadata["Name"], point.dist.version
            places.setdefault(path, LibraryPlace(path, f"wheel {name} {version}", name))
    return list(places.values())


def _package_folder(point: metadata.EntryPoint) -> Path | None:
    """Return the library folder of a wheel's package, without importing the package."""
    if point.dist is not None:
        folder = Path(str(point.dist.locate_file(point.module.replace(".", "/")))) / WHEEL_FOLDER
        if folder.is_dir():
            return folder.absolute()
    # Other kinds of installation leave the files elsewhere. A look-up of a name with a dot would
    # import the part before the dot.
    spec = util.find_spec(point.module) if "." not in point.module else None
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location) / WHEEL_FOLDER
        if folder.is_dir():
            return folder.absolute()
    return None


def _find(relative: Path, but: Path | None) -> Path | None:
    for root in read_roots():
        path = root / relative
        if path != but and path.is_file():
            return path
    return None


def _files(kind: str, pattern: str) -> Iterator[Path]:
    files: dict[tuple[str, str], Path] = {}
    for root in read_roots():
        for path in (root / kind).glob(pattern):
            files.setdefault((path.parent.name, path.name), path)
    for key in sorted(files):
        yield files[key]
