"""The NVIDIA GPUs of this machine, read from the driver through libcuda alone."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass

# CUdevice_attribute values of the CUDA driver API (cuda.h).
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: its product name, compute capability (major, minor) and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver: the newest CUDA version that it runs, such as `13.0`, and its GPUs."""

    cuda: str | None
    gpus: tuple[Gpu, ...]


@functools.cache
def driver() -> Driver:
    """Return the CUDA driver's version and GPUs; without a driver, None and no GPUs.

    The driver leaves out GPUs that CUDA_VISIBLE_DEVICES hides. It is asked once in a process.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return Driver(None, ())
    version = ctypes.c_int()
    text = None
    if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
        text = f"{version.value // 1000}.{version.value % 1000 // 10}"
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return Driver(text, ())
    return Driver(text, tuple(_gpu(cuda, index) for index in range(count.value)))


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    memory = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)
