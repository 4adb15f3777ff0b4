"""Measures how many multiply-adds and bytes a second this CPU reaches, to judge kernels by."""

from __future__ import annotations

import ctypes
import functools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources

import torch

from natc.bench.results import Ceilings
from natc.errors import BuildError
from natc.host import c_compiler
from natc.host.detect import detect_host_cpu
from natc.host.toolchain import find_c_compiler
from natc.store.temporary import temporary_directory
from natc.targets import Target

# The options with which a C compiler uses all of an architecture's vector registers, if any.
_VECTOR_OPTIONS = {"x86-64-v3": ("-mavx2", "-mfma"), "x86-64-v4": ("-mavx512f",)}
_C_TYPES = {"float32": ("float", 4), "float64": ("double", 8)}
# Each thread copies more than its share of the caches.
_COPY_BYTES = 64 * 1024**2
_MATRIX = 1024
_SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Probe:
    """Short measurements: each call runs for a few milliseconds and returns a rate.

    multiply_adds(threads): multiply-adds a second. copies(threads): bytes read and written a
    second. method: how, in words. lower_bound: whether the CPU may do more multiply-adds.
    """

    multiply_adds: Callable[[int], float]
    copies: Callable[[int], float]
    method: str
    lower_bound: bool


def measure(dtype: str = "float32", seconds: float = 1.0) -> Ceilings:
    """Return the rates of this CPU with torch's number of threads and with one.

    A rate is the upper quartile of many short samples: other programs only ever slow them down.
    dtype: float32 or float64. seconds: to spend on each rate.
    """
    probe, threads = open_probe(dtype), torch.get_num_threads()

    def rate(sample: Callable[[int], float], threads: int) -> float:
        sample(threads)
        rates, start = [sample(threads), sample(threads)], time.perf_counter()
        while time.perf_counter() - start < seconds:
            rates.append(sample(threads))
        return statistics.quantiles(rates, n=4)[2]

    all_threads = "1 thread" if threads == 1 else f"{threads} threads"
    counts = {all_threads: threads, "1 thread": 1}
    return Ceilings(
        bytes_per_second=rate(probe.copies, threads),
        operations_per_second={
            f"{dtype}, {name}": 2 * rate(probe.multiply_adds, count)
            for name, count in counts.items()
        },
        method=f"{probe.method}; copies of memory; {all_threads}",
        lower_bound=probe.lower_bound,
    )


@functools.cache
def open_probe(dtype: str = "float32", target: Target | None = None) -> Probe:
    """Return the probe of this machine: compiled multiply-adds.

    target: whose vector registers to use; by default, this CPU's. Without a C compiler the probe
    is torch's matrix product, which is a lower bound.
    """
    cpu = target or detect_host_cpu()
    flags = _VECTOR_OPTIONS.get(cpu.arch, ())
    c_type, size = _C_TYPES[dtype]
    lanes = cpu.vector_bytes // size
    with temporary_directory("peak") as directory:
        output = directory / "peak.so"
        try:
            compiler = find_c_compiler()
            with resources.as_file(resources.files("natc.bench") / "peak.c") as source:
                options = ["-O2", "-ffp-contract=fast", "-fPIC", "-shared"]
                options += [f"-DREAL={c_type}", f"-DLANES={lanes}"]
                command = [*compiler, *options, *flags, "-o", str(output), str(source)]
                caches = c_compiler.zig_caches(directory)
                c_compiler.run(command, "compiling the probe of this CPU", **caches)
            library = ctypes.CDLL(str(output))
        except (BuildError, OSError) as error:
            return _matrix_probe(dtype, str(error))
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
        times = _on_threads(lambda _: library.natc_peak_multiply_adds(rounds), threads)
        return sum(rounds * each_round / seconds for seconds in times)

    def copies(threads: int) -> float:
        def copy(thread: int) -> float:
            target, source = (buffer.data_ptr() for buffer in _buffers(thread))
            return float(library.natc_peak_copies(target, source, _COPY_BYTES, 1))

        for thread in range(threads):
            _buffers(thread)
        return sum(2 * _COPY_BYTES / seconds for seconds in _on_threads(copy, threads))

    return Probe(multiply_adds, copies, f"multiply-adds of {lanes} {dtype} in registers", False)


@functools.cache
def _buffers(thread: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the memory that a thread copies to, and the memory that it copies from."""
    target = torch.ones(_COPY_BYTES, dtype=torch.uint8, device="cpu")
    return target, torch.ones_like(target)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "natc-peak")


def _on_threads(work: Callable[[int], float], threads: int) -> list[float]:
    """Call `work` with each thread's number, all at the same time; return the results."""
    if threads == 1:
        return [work(0)]
    return list(_pool(threads).map(work, range(threads)))


def _matrix_probe(dtype: str, reason: str) -> Probe:
    matrix = torch.rand(_MATRIX, _MATRIX, device="cpu", dtype=getattr(torch, dtype))
    product = torch.empty_like(matrix)

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
        target, source = _buffers(0)
        return 2 * _COPY_BYTES / timed(lambda: target.copy_(source), threads)

    return Probe(
        lambda threads: _MATRIX**3 / timed(lambda: torch.mm(matrix, matrix, out=product), threads),
        copies,
        f"torch.mm of {_MATRIX} x {_MATRIX} ({reason.splitlines()[0]})",
        lower_bound=True,
    )
