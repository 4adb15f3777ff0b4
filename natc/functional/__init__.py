"""Neighborhood attention as functions, with every argument checked before anything runs.

Fused, heads-last: `na1d`, `na2d`, `na3d`, and `neighborhood_attention` for any rank; and
`na1d_qkvpacked` and its likes for query, key and value in one tensor. Unfused, heads-first:
`na1d_qk`, `na1d_av` and their likes of rank 2 and 3.
"""

from __future__ import annotations

from natc.functional.fused import na1d, na2d, na3d, neighborhood_attention
from natc.functional.packed import na1d_qkvpacked, na2d_qkvpacked, na3d_qkvpacked
from natc.functional.unfused import na1d_av, na1d_qk, na2d_av, na2d_qk, na3d_av, na3d_qk

__all__ = [
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na1d_qkvpacked",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na2d_qkvpacked",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "na3d_qkvpacked",
    "neighborhood_attention",
]
