"""Detecting this machine's CPU, GPU and C library."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from natc.errors import TargetError
from natc.host import gpu
from natc.store import elf
from natc.targets import ARCHS, CUDA_ARCHS, Target, cuda_target_for

# x86-64 psABI, "Micro-architecture levels", in the names that Linux gives the CPU flags
# (lzcnt is `abm` there).
_V3_FLAGS = frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"))
_V4_FLAGS = frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))
# The names that macOS gives the same flags.
_MACOS_FLAGS = {"avx1.0": "avx", "lzcnt": "abm"}

# Linux's files about a cache; and a core's caches if there are no such files.
_CACHE_FILES = ("level", "type", "size")
_USUAL_CACHE = {1: 32 * 1024, 2: 512 * 1024}


def parse_target(text: str, arch: str | None = None) -> Target:
    """Return the target named `llvm`, `cuda`, or in full, such as `cuda-sm_90`.

    arch: the architecture, if `text` is a kind; by default this machine's. Raises TargetError for
    an unknown name, for two architectures that differ, and for `cuda` without an arch on a
    machine without a GPU.
    """
    if text in ARCHS and arch is None:
        return detect_host_cpu() if text == "llvm" else detect_gpu()
    return Target.parse(text, arch)


@functools.cache
def detect_host_cpu() -> Target:
    """Return the llvm target of this machine's CPU; raises TargetError for an unknown CPU."""
    machine = host_machine()
    if machine == "aarch64":
        return Target("llvm", "aarch64")
    if machine == "x86_64":
        return Target("llvm", x86_64_level(cpu_flags()))
    raise TargetError(
        f"this machine's CPU is {platform.machine()!r}; natc compiles for x86-64 and aarch64."
    )


def detect_gpu() -> Target:
    """Return the cuda target whose code runs best on the first GPU of this machine.

    Raises TargetError when there is no GPU or no listed architecture serves it.
    """
    gpus = gpu.driver().gpus
    if not gpus:
        raise TargetError(
            "there is no NVIDIA GPU on this machine (or its driver does not answer); "
            f"name an architecture, one of {', '.join(CUDA_ARCHS)}, with --arch."
        )
    return cuda_target_for(gpus[0].capability)


def require_runs_here(target: Target, advice: str) -> None:
    """Raise TargetError, with some advice, unless this machine runs code for a target."""
    machine = parse_target(target.kind)
    if not target.runs_on(machine):
        raise TargetError(
            f"code for {target.name} does not run on this machine, which is {machine.name}; "
            f"{advice}."
        )


def x86_64_level(flags: frozenset[str]) -> str:
    """Return the micro-architecture level, `x86-64-v2` to `x86-64-v4`, of CPU flags."""
    if flags >= _V3_FLAGS | _V4_FLAGS:
        return "x86-64-v4"
    return "x86-64-v3" if flags >= _V3_FLAGS else "x86-64-v2"


def cpu_flags() -> frozenset[str]:
    """Return this x86 CPU's feature flags in Linux's names, or an empty set if unknown."""
    if sys.platform == "darwin":
        words = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features",
             "machdep.cpu.extfeatures"],
            capture_output=True, text=True, check=False,
        ).stdout.lower().split()  # fmt: skip
        return frozenset(_MACOS_FLAGS.get(flag, flag) for flag in words)
    return frozenset(_cpuinfo("flags").split())


def host_target() -> str | None:
    """Return the name of this CPU's target, or None if natc has none."""
    try:
        return detect_host_cpu().name
    except TargetError:
        return None


def host_machine() -> str:
    """Return this machine's processor in the names of `natc.store.elf.MACHINES`."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@functools.cache
def this_glibc() -> tuple[int, ...]:
    """Return the version of this system's glibc, such as (2, 28), or (0,) without glibc."""
    try:
        return elf.parse_version((os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc "))
    except (AttributeError, ValueError, OSError):
        return (0,)


def cores() -> int:
    """Return how many logical CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def cache_bytes(level: int) -> int:
    """Return the bytes of a core's cache for data, of level 1 or 2; a usual size if unknown."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            facts = {name: (folder / name).read_text().strip() for name in _CACHE_FILES}
            if facts["level"] == str(level) and facts["type"] in ("Data", "Unified"):
                return int(facts["size"].removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return _USUAL_CACHE[level]


def cpu_model() -> str:
    """Return the CPU's product name, or its architecture if the name is unknown."""
    name: str | None = _cpuinfo("model name")
    if sys.platform == "darwin":
        name = run("sysctl", "-n", "machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """Return a field of the first processor in Linux's list; "" if it is not there."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    match = re.search(rf"^{field}\s*:(.*)$", text, flags=re.MULTILINE)
    return match[1].strip() if match else ""


def run(*command: str) -> str | None:
    """Return a command's output, stripped; None if it is missing, fails or takes 20 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
