"""A package of kernels for GPUs, from the command line, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import natc
from natc.errors import CompilerNotFound
from natc.host import detect, toolchain
from natc.package import plan
from natc.store import elf
from natc.store.manifest import parse_manifest

try:
    toolchain.find_nvcc()
except CompilerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

ROOT = Path(natc.__file__).parents[1]
# What all kernels of NAT may take for one architecture, compressed, and how many those are.
MOST, KERNELS = 14_000_000, 72
# The kernel of this test takes 1.04 times the mean of all of them.
OF_MEAN = 1.04
WORDS = (
    "package --set nat --kernel 7 --head-dim 32 --dtype float16 --rpb --target cuda --arch sm_90"
)


def run(*words: str, **variables: str) -> Any:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NATC_")}
    done = subprocess.run(
        [sys.executable, "-m", "natc", *words, "--json"],
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_package_for_a_gpu_is_small_and_needs_nothing(tmp_path: Path) -> None:
    printed = run(*WORDS.split(), "-o", str(tmp_path / "dist"), NATC_CACHE_DIR=str(tmp_path))
    assert (printed["name"], printed["archs"]) == ("natc-kernels-cuda-sm-90", ["sm_90"])
    assert set(printed["sizes"]) == {"sm_90", "compute_90", "host"}
    (library,) = printed["libraries"]
    assert library["operations"] == ["forward", "backward"]
    (file,) = printed["files"]
    wheel = Path(file["path"])
    machine = detect.host_machine()
    name = f"natc_kernels_cuda_sm_90-{natc.__version__}-py3-none-manylinux_2_28_{machine}.whl"
    assert wheel == tmp_path / "dist" / name
    nat = plan.SETS["nat"]
    assert 2 * len(nat.kernels) * len(nat.head_dims) * len(nat.dtypes) == KERNELS
    assert wheel.stat().st_size < OF_MEAN * MOST / KERNELS

    assert run("verify", str(wheel))["ok"]
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".json"))
        manifest = parse_manifest(archive.read(path), path)
    assert manifest.ptx == "sm_90" and manifest.versions["cuda"]
    assert elf.parse_version(manifest.glibc) <= elf.PORTABLE_GLIBC
