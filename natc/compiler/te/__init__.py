"""Tensor-expression definitions: what a kernel computes, and nothing about how fast."""

from natc.compiler.te.forward import forward

__all__ = ["forward"]
