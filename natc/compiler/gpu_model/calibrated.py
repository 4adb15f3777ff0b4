"""The coefficients of the model, calibrated on an H100 by `benchmarks/gpu_model.py`."""

from __future__ import annotations

from natc.compiler.gpu_model.timing import Coefficients

# The compiler of the kernels whose work was counted.
NVCC = "13.0"
COEFFICIENTS = Coefficients(
    wavefront=0.99, load_wait=205.0, shuffle_wait=60.0, overlap=3.7, launch=3e-6
)
