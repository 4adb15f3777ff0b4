"""Tensor-expression definitions of the operations, without any schedule."""

from natc.compiler.te.forward import forward

__all__ = ["forward"]
