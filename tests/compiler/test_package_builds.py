"""Packages of kernels that were compiled: they are equal when built twice, and run elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.loaded_file import load_file

import natc
from natc.host.detect import detect_host_cpu

ROOT = Path(natc.__file__).parents[1]


def clean(cache: Path, **more: str) -> dict[str, str]:
    """An environment in which natc finds nothing that this machine has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NATC_")}
    return {**kept, "PYTHONPATH": str(ROOT), "NATC_CACHE_DIR": str(cache), **more}


def command(output: Path, *words: str) -> list[str]:
    return [
        sys.executable, "-m", "natc", "package", "--target", detect_host_cpu().name,
        "--dtype", "float32", "--operations", "forward", "-o", str(output), *words, "--json",
    ]  # fmt: skip


def package(cache: Path, output: Path, *words: str) -> Any:
    done = subprocess.run(
        command(output, *words), env=clean(cache), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


def test_two_builds_of_one_commit_are_equal(caches: Path, tmp_path: Path) -> None:
    """Built from nothing twice, in folders with other names, by other processes."""
    words = ("--kernel", "3", "--head-dim", "8", "--format", "wheel,archive", "--no-rpb")
    first = package(caches / "first", tmp_path / "first", *words)
    second = package(caches / "the second", tmp_path / "the second", *words)
    assert (first["built"], second["built"]) == (1, 1)
    hashes = [[file["sha256"] for file in result["files"]] for result in (first, second)]
    assert hashes[0] == hashes[1]
    for folder in (tmp_path, caches, ROOT):
        for path in (caches / "first").rglob("*.so"):
            assert str(folder).encode() not in path.read_bytes()


def left(group: int) -> list[int]:
    """Return the processes of a group that still run."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process.pid)
    return processes


def test_a_killed_package_command_goes_on_when_repeated(tmp_path: Path) -> None:
    words = ("--kernel", "3", "--head-dim", "8", "--jobs", "1")
    cache = tmp_path / "cache"
    running = subprocess.Popen(
        command(tmp_path / "dist", *words), env=clean(cache), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not list(cache.rglob("*.json")) and time.monotonic() < deadline:
            assert running.poll() is None
            time.sleep(0.05)
        running.kill()
        running.wait()
        while left(running.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left(running.pid) == [], "processes that build end when their parent is killed"
    finally:
        for process in left(running.pid):
            os.kill(process, signal.SIGKILL)
        running.wait()
    assert not (tmp_path / "dist").exists()
    document = package(cache, tmp_path / "dist", *words)
    assert document["reused"] >= 1 and document["reused"] + document["built"] == 2


def test_the_package_for_the_hub_computes_attention_and_gradients(
    caches: Path, tmp_path: Path
) -> None:
    """By the copy of natc that it carries, with its own library."""
    import torch

    from natc import reference

    # The last of two equal options counts.
    words = ("--kernel", "3", "--head-dim", "8", "--operations", "forward,backward", "--rpb")
    built = package(caches / "hub", tmp_path, *words, "--format", "hf")
    path = Path(built["files"][0]["path"]) / "__init__.py"
    kernel = load_file(path, "hub_kernel_under_test")

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = [random(2, 6, 7, 4, 8), random(2, 6, 7, 2, 8), random(2, 6, 7, 2, 8)]
    d_output = random(2, 6, 7, 4, 8)
    options = {"dilation": (2, 1), "stride": (1, 2), "is_causal": (False, True), "scale": 0.3}
    tensors = [*inputs, random(4, 5, 5)]
    exact = [t.clone().requires_grad_() for t in tensors]
    query, key, value, rpb = exact
    expected = reference.neighborhood_attention(query, key, value, 3, rpb=rpb, **options)
    # Not aligned.
    single = [
        torch.cat([t.new_zeros(1), t.flatten()]).float()[1:].view(t.shape).requires_grad_()
        for t in tensors
    ]
    query, key, value, rpb = single
    # NATC_STRICT is set here, so that no part of it runs on the reference.
    actual = kernel.na2d(query, key, value, 3, rpb=rpb, **options)
    gradients = torch.autograd.grad(actual, single, d_output.float())
    assert all(t.data_ptr() % 16 for t in single)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, exact, d_output)
    for gradient, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="na2d_k5_d8_float32"):
        kernel.na2d(query, key, value, 5)
    with pytest.raises(ValueError, match="stride"):
        kernel.na2d(query, key, value, 3, stride=4)
