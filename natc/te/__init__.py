"""Tensor-expression definitions: what a kernel computes, and nothing about how fast."""

from natc.te.forward import forward

__all__ = ["forward"]
