"""Tensor-expression definitions of the operations, without any schedule."""
