"""Kernels for tensor cores in float16 and bfloat16, a tile of queries or keys a warp."""

from natc.compiler.tensor_cores.choice import apply, serves, structure
from natc.compiler.tensor_cores.launch import apply_tiles

__all__ = ["apply", "apply_tiles", "serves", "structure"]
