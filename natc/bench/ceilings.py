"""What a processor does at most, measured beside the times that are to be judged by it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from natc.bench import peak
from natc.bench.results import Ceilings

# Larger than the caches of any GPU, and enough products to fill one.
_COPY_BYTES = 512 * 1024**2
_MATRIX = 8192


def measure(device: str, dtype: str, *, seconds: float = 0.3) -> Ceilings:
    """Return what a device does at most, `cpu` or `cuda`.

    On a CPU, float32 multiply-adds in registers and copies, by as many threads as torch uses. On a
    GPU, a copy of 512 MiB and products of large matrices, by torch.

    seconds: to be spent on each ceiling. dtype: of the kernels that are to be judged.
    """
    if device == "cpu":
        found = peak.measure(seconds)
        threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
        # Kernels of 16-bit types compute in float32, those of float64 do not.
        operations = {f"float32, {threads}": 2 * found.multiply_adds}
        if found.threads > 1:
            operations["float32, 1 thread"] = 2 * found.multiply_adds_one_thread
        return Ceilings(
            bytes_per_second=found.bytes_per_second,
            operations_per_second=operations if dtype != "float64" else {},
            method=f"{found.method}; copies of memory; {threads}",
            lower_bound=found.lower_bound,
        )
    return _gpu(dtype, seconds)


def _gpu(dtype: str, seconds: float) -> Ceilings:
    operations = {}
    # float32 is what CUDA cores do, where TF32 is off, and 16-bit types what tensor cores do.
    for name in dict.fromkeys((dtype, "float32")):
        operations[f"{name} matrices"] = _matrix_rate(getattr(torch, name), seconds)
    return Ceilings(
        bytes_per_second=_copy_rate(seconds),
        operations_per_second=operations,
        method=f"a copy of {_COPY_BYTES // 1024**2} MiB, products of {_MATRIX} x {_MATRIX}",
        # What a library reaches; the hardware could do a little more.
        lower_bound=True,
    )


def _copy_rate(seconds: float) -> float:
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    return 2 * _COPY_BYTES / _seconds_of(lambda: to.copy_(source), seconds)


def _matrix_rate(dtype: torch.dtype, seconds: float) -> float:
    left = torch.rand(_MATRIX, _MATRIX, device="cuda", dtype=dtype)
    product = torch.empty_like(left)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return 2 * _MATRIX**3 / _seconds_of(lambda: torch.mm(left, left, out=product), seconds)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _seconds_of(work: Callable[[], object], seconds: float) -> float:
    """Return the lower quartile of samples: whatever else the machine does only ever adds."""
    samples: list[float] = []
    work()
    start = time.perf_counter()
    while len(samples) < 5 or time.perf_counter() - start < seconds:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - begin)
    return statistics.quantiles(samples, n=4)[0]
