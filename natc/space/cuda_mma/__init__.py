"""Kernels for tensor cores in float16 and bfloat16, a tile of queries or keys a warp."""

from natc.space.cuda_mma.choice import apply, serves, structure
from natc.space.cuda_mma.launch import apply_tiles

__all__ = ["apply", "apply_tiles", "serves", "structure"]
