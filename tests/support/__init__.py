"""Shared by the tests: helpers, doubles of kernels, and oracles without code of natc."""
