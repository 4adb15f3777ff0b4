"""Shipping libraries: collecting, checking, signing and packing them reproducibly.

Needs neither torch nor TVM; other processes build the kernels.
"""
