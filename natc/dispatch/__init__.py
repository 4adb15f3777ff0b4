"""Runs a checked call: on a kernel where a library covers it, else on the reference."""
