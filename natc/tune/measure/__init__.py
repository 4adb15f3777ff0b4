"""Measures candidates on this machine. Needs no compiler."""
