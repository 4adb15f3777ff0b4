"""Kernels for CPUs that compute tiles of queries: written as statements, not scheduled."""
