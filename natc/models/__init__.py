"""Models whose attention runs on natc's kernels."""

from __future__ import annotations

from natc.models.nat import NAT, nat_base, nat_mini, nat_small, nat_tiny

__all__ = ["NAT", "nat_base", "nat_mini", "nat_small", "nat_tiny"]
