"""Shipping libraries: collecting, checking and signing them, and packing them reproducibly.

Needs neither torch nor TVM, except to build kernels, which other processes do.
"""
