"""What ran a measurement or a build: versions, CPU, GPU, commit. Nothing missing is an error."""

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
    """Return this machine and environment as a record, with an id of its own.

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
    """Return the versions of natc, Python and the libraries that matter; None: not installed."""
    from natc.version import __version__

    found: dict[str, str | None] = {"natc": __version__, "python": platform.python_version()}
    for name, distributions in _DISTRIBUTIONS.items():
        found[name] = next(filter(None, map(version_of, distributions)), None)
    return found


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
    """Return a GPU in the form that a record holds."""
    major, minor = device.capability
    return GpuFacts(device.name, f"{major}.{minor}", device.memory)


def git_state() -> Git | None:
    """Return the commit of the checkout natc runs from, or None when it is installed."""
    root = workspace.checkout()
    if root is None:
        return None
    commit = run("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return None
    # Only the code counts: tuning itself changes schedules/ and tuning_logs/.
    changes = run("git", "-C", str(root), "status", "--porcelain", "--", "natc")
    return Git(commit, dirty=bool(changes))
