"""CUDA kernels of natc, executed on the CPU: the very source, host code and launcher.

The CUDA C++ that natc generates is compiled as ordinary C++ with headers of our own (`include`),
and linked with natc's host code and launcher to a driver that runs the threads of a block as
fibers (`runtime.c`, `driver.c`). A call raises RuntimeError for mistakes of its kernel: lanes that
do not meet, accesses outside of the tensors or misaligned, races between threads, indices
outside of arrays, and integers that overflow. Memory that nobody wrote is NaN.
"""

from support.emulator.library import (
    Emulated,
    EmulatedSource,
    emulate,
    emulate_code,
    emulate_source,
)

__all__ = ["Emulated", "EmulatedSource", "emulate", "emulate_code", "emulate_source"]
