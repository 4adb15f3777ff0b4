"""Where natc's files lie: schedules and logs (workspace), libraries (cache), packaged data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import platformdirs

from natc import env
from natc.spec import KernelSpec
from natc.targets import Target

_PACKAGE = Path(__file__).resolve().parent
PACKAGED_DATA = _PACKAGE / "_data"


def checkout() -> Path | None:
    """Return the root of the source checkout that natc runs from, or None when installed."""
    root = _PACKAGE.parent
    found = (root / "pyproject.toml").is_file() and (root / "schedules").is_dir()
    return root if found else None


def workspace() -> Path:
    """Return the directory that holds `schedules/` and `tuning_logs/`; it may not exist yet."""
    named = env.NATC_WORKSPACE.get()
    if named:
        return Path(named).expanduser().absolute()
    return checkout() or platformdirs.user_data_path("natc", appauthor=False)


def read_roots() -> list[Path]:
    """Return the directories to read schedules and logs from, first match wins."""
    return [workspace(), PACKAGED_DATA]


def schedule_path(spec: KernelSpec, target: Target) -> Path:
    """Return the file to which the schedule of a kernel is written."""
    return workspace() / "schedules" / target.name / f"{spec.name}.json"


def log_path(spec: KernelSpec, target: Target) -> Path:
    """Return the file to which the tuning records of a kernel are appended."""
    return workspace() / "tuning_logs" / target.name / f"{spec.name}.jsonl"


def find_schedule(spec: KernelSpec, target: Target) -> Path | None:
    """Return the schedule file that counts for a kernel, or None when there is none."""
    return _find(Path("schedules") / target.name / f"{spec.name}.json")


def find_log(spec: KernelSpec, target: Target) -> Path | None:
    """Return the tuning log that counts for a kernel, or None when there is none."""
    return _find(Path("tuning_logs") / target.name / f"{spec.name}.jsonl")


def schedule_files() -> Iterator[Path]:
    """Yield every schedule file that counts, sorted by target and spec name."""
    return _files("schedules", "*.json")


def log_files() -> Iterator[Path]:
    """Yield every tuning log that counts, sorted by target and spec name."""
    return _files("tuning_logs", "*.jsonl")


def cache_dir() -> Path:
    """Return the directory for what can be built again; it may not exist yet."""
    named = env.NATC_CACHE_DIR.get()
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("natc", appauthor=False)


def library_dir() -> Path:
    """Return the library directory that `natc build` writes to by default."""
    return cache_dir() / "lib"


def library_dirs() -> list[Path]:
    """Return the directories that libraries are looked for in, in order; some may not exist."""
    named = [Path(part).expanduser().absolute() for part in env.NATC_LIB_PATH.paths()]
    return [*named, library_dir(), PACKAGED_DATA / "lib"]


def _find(relative: Path) -> Path | None:
    for root in read_roots():
        path = root / relative
        if path.is_file():
            return path
    return None


def _files(kind: str, pattern: str) -> Iterator[Path]:
    found: dict[tuple[str, str], Path] = {}
    for root in read_roots():
        for path in (root / kind).glob(f"*/{pattern}"):
            found.setdefault((path.parent.name, path.name), path)
    for key in sorted(found):
        yield found[key]
