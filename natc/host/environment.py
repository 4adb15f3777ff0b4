"""The versions, CPU, GPU and commit behind a measurement or a build; any may be missing."""

from __future__ import annotations

import datetime
import platform
import uuid
from importlib import metadata

from packaging.version import Version

from natc.host import gpu
from natc.host.detect import cores, cpu_model, host_target, run
from natc.store import workspace
from natc.store.records import Environment, Git, GpuFacts

# Name in a record -> distributions that provide it; the first one installed counts.
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "tvm": ("apache-tvm",),
    "tvm_ffi": ("apache-tvm-ffi",),
    "xgboost": ("xgboost", "xgboost-cpu"),
}


def collect(seed: int | None = None) -> Environment:
    """Return this machine and environment as a record with a new id.

    seed: the seed of the search that is about to run. Imports neither torch nor tvm.
    """
    driver = gpu.driver()
    return Environment(
        id=uuid.uuid4().hex[:12],
        versions=versions(),
        os=platform.platform(),
        cpu=cpu_model(),
        cores=cores(),
        target=host_target(),
        gpu=gpu_facts(driver.gpus[0]) if driver.gpus else None,
        driver=driver.cuda,
        git=git_state(),
        timestamp=now(),
        seed=seed,
    )


def versions() -> dict[str, str | None]:
    """Return the versions of natc, Python and `_DISTRIBUTIONS`; None: not installed."""
    from natc.version import __version__

    numbers: dict[str, str | None] = {"natc": __version__, "python": platform.python_version()}
    for name, distributions in _DISTRIBUTIONS.items():
        numbers[name] = next(filter(None, map(version_of, distributions)), None)
    return numbers


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def compiler_problem() -> str | None:
    """Return why the installed TVM and tvm-ffi do not work together, or None if they do.

    TVM up to 0.27 crashes when it serialises IR with tvm-ffi 0.1.15 and newer.
    """
    tvm, ffi = version_of("apache-tvm"), version_of("apache-tvm-ffi")
    if tvm is None or ffi is None:
        return None
    if Version(tvm) < Version("0.28.dev0") and Version(ffi) >= Version("0.1.15.dev0"):
        return (
            f"apache-tvm {tvm} crashes with apache-tvm-ffi {ffi}: "
            "pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'."
        )
    return None


def now() -> str:
    """Return the time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def gpu_facts(device: gpu.Gpu) -> GpuFacts:
    """Return a GPU in the form of a record."""
    major, minor = device.capability
    return GpuFacts(device.name, f"{major}.{minor}", device.memory)


def git_state() -> Git | None:
    """Return the commit of the checkout that natc runs from, or None if natc is installed."""
    root = workspace.checkout()
    if root is None:
        return None
    commit = run("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return None
    # Only the code counts, because tuning changes schedules/ and tuning_logs/.
    changes = run("git", "-C", str(root), "status", "--porcelain", "--", "natc")
    return Git(commit, dirty=bool(changes))
