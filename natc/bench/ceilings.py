"""Measures the rates that a kernel's time is judged by: the most this machine reaches."""

from __future__ import annotations

import torch

from natc.bench import clocks, peak
from natc.bench.results import Ceilings

# Larger than the caches of any GPU; and enough products to fill one.
_COPY_BYTES = 512 * 1024**2
_MATRIX = 8192


def measure(device: str, dtype: str, *, seconds: float = 0.3) -> Ceilings:
    """Return the largest rates of a device, `cpu` or `cuda`, for kernels of a dtype.

    On a CPU: multiply-adds in registers and copies, with as many threads as torch uses. On a GPU:
    a copy of 512 MiB and products of large matrices, by torch. seconds: to spend on each rate.
    """
    if device == "cpu":
        # Kernels of 16-bit types compute in float32.
        return peak.measure("float64" if dtype == "float64" else "float32", seconds)
    return Ceilings(
        bytes_per_second=_copy_rate(seconds),
        # The dtype's own rate comes first: tensor cores for 16-bit types. float32 is what CUDA
        # cores do, because TF32 is off.
        operations_per_second={
            f"{name} matrices": _matrix_rate(getattr(torch, name), seconds)
            for name in dict.fromkeys((dtype, "float32"))
        },
        method=f"a copy of {_COPY_BYTES // 1024**2} MiB, products of {_MATRIX} x {_MATRIX}",
        # The hardware may do a little more than torch's libraries reach.
        lower_bound=True,
    )


def _copy_rate(seconds: float) -> float:
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = clocks.interleave({"copy": lambda: target.copy_(source)}, seconds)["copy"]
    return 2 * _COPY_BYTES / clocks.quartiles(times)[0]


def _matrix_rate(dtype: torch.dtype, seconds: float) -> float:
    matrix = torch.rand(_MATRIX, _MATRIX, device="cuda", dtype=dtype)
    product = torch.empty_like(matrix)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        calls = {"product": lambda: torch.mm(matrix, matrix, out=product)}
        times = clocks.interleave(calls, seconds)["product"]
        return 2 * _MATRIX**3 / clocks.quartiles(times)[0]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
