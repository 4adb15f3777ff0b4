"""What this CPU can do at most: float32 multiply-adds and bytes a second, measured.

A kernel's time says little without them. `open_probe` gives short measurements, to be taken in
turn with a kernel's, since processors change their clock; `measure` takes enough for a figure.
"""

from __future__ import annotations

import ctypes
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from natc.errors import BuildError
from natc.host import c_compiler
from natc.host.detect import detect_host_cpu
from natc.host.toolchain import find_c_compiler

# What the probe is compiled with, and how many float32 a register holds, for each target.
_FLAGS = {
    "x86-64-v2": (4, ()),
    "x86-64-v3": (8, ("-mavx2", "-mfma")),
    "x86-64-v4": (16, ("-mavx512f",)),
    "aarch64": (4, ()),
}
# Copied by each thread: more than its share of the caches.
_COPY_BYTES = 64 * 1024**2
_MATRIX = 1024
_SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Peak:
    """What a CPU does at most.

    multiply_adds, multiply_adds_one_thread: a second, float32; a multiply-add is two operations.
    bytes_per_second: read and written together, all threads, beyond the caches. threads: torch's.
    method: how it was measured. lower_bound: whether multiply-adds could be more than that.
    """

    multiply_adds: float
    multiply_adds_one_thread: float
    bytes_per_second: float
    threads: int
    method: str
    lower_bound: bool


@dataclass(frozen=True)
class Probe:
    """Short measurements: each call runs a few milliseconds and returns a rate.

    multiply_adds(threads): a second. copies(threads): bytes read and written a second.
    method, lower_bound: as in `Peak`.
    """

    multiply_adds: Callable[[int], float]
    copies: Callable[[int], float]
    method: str
    lower_bound: bool


@functools.cache
def open_probe() -> Probe:
    """Return the probe of this machine: compiled multiply-adds, or torch's matrix product.

    The latter, a lower bound, where there is no C compiler.
    """
    lanes, flags = _FLAGS[detect_host_cpu().arch]
    with tempfile.TemporaryDirectory(prefix="natc-peak-") as directory:
        output = Path(directory) / "peak.so"
        try:
            compiler = find_c_compiler()
            with resources.as_file(resources.files("natc.bench") / "peak.c") as source:
                options = ["-O2", "-ffp-contract=fast", "-fPIC", "-shared", f"-DLANES={lanes}"]
                command = [*compiler, *options, *flags, "-o", str(output), str(source)]
                caches = c_compiler.zig_caches(Path(directory))
                c_compiler.run(command, "compiling the probe of this CPU", **caches)
            library = ctypes.CDLL(str(output))
        except (BuildError, OSError) as error:
            return _matrix_probe(str(error))
    library.natc_peak_multiply_adds.restype = ctypes.c_double
    library.natc_peak_multiply_adds.argtypes = [ctypes.c_long]
    library.natc_peak_copies.restype = ctypes.c_double
    library.natc_peak_copies.argtypes = [
        *(ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_ulong, ctypes.c_long),
    ]
    each_round = library.natc_peak_multiply_adds_a_round()
    once = library.natc_peak_multiply_adds(10_000) / 10_000
    rounds = max(1, round(_SAMPLE_SECONDS / once))

    def multiply_adds(threads: int) -> float:
        seconds = _on_threads(lambda _: library.natc_peak_multiply_adds(rounds), threads)
        return sum(rounds * each_round / taken for taken in seconds)

    def copies(threads: int) -> float:
        def copy(number: int) -> float:
            to, source = _buffers(number)
            return float(
                library.natc_peak_copies(to.data_ptr(), source.data_ptr(), _COPY_BYTES, 1)
            )

        for number in range(threads):
            _buffers(number)
        return sum(2 * _COPY_BYTES / taken for taken in _on_threads(copy, threads))

    method = f"multiply-adds of {lanes} float32 in registers"
    return Probe(multiply_adds, copies, method, lower_bound=False)


def measure(seconds: float = 1.0) -> Peak:
    """Return what this CPU does with one thread and with torch's number of threads.

    Each rate is that of the lower quartile of many short samples' times: whatever else the
    machine does only ever adds. seconds: to be spent on each of the three.
    """
    probe, threads = open_probe(), torch.get_num_threads()

    def rate(sample: Callable[[int], float], threads: int) -> float:
        sample(threads)
        found, start = [sample(threads), sample(threads)], time.perf_counter()
        while time.perf_counter() - start < seconds:
            found.append(sample(threads))
        return statistics.quantiles(found, n=4)[2]

    return Peak(
        rate(probe.multiply_adds, threads),
        rate(probe.multiply_adds, 1),
        rate(probe.copies, threads),
        threads,
        probe.method,
        probe.lower_bound,
    )


@functools.cache
def _buffers(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the memory that a thread copies to and from."""
    to = torch.ones(_COPY_BYTES, dtype=torch.uint8, device="cpu")
    return to, torch.ones_like(to)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "natc-peak")


def _on_threads(work: Callable[[int], float], threads: int) -> list[float]:
    """Return what calls return that run at the same time, as far as cores allow."""
    if threads == 1:
        return [work(0)]
    return list(_pool(threads).map(work, range(threads)))


def _matrix_probe(reason: str) -> Probe:
    left = torch.rand(_MATRIX, _MATRIX, device="cpu")
    product = torch.empty_like(left)

    def timed(work: Callable[[], object], threads: int) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        finally:
            torch.set_num_threads(before)

    def copies(threads: int) -> float:
        to, source = _buffers(0)
        return 2 * _COPY_BYTES / timed(lambda: to.copy_(source), threads)

    return Probe(
        lambda threads: _MATRIX**3 / timed(lambda: torch.mm(left, left, out=product), threads),
        copies,
        f"torch.mm of {_MATRIX} x {_MATRIX} ({reason.splitlines()[0]})",
        lower_bound=True,
    )
