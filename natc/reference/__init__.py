"""Neighborhood attention in plain PyTorch: slow, short, any device; what every kernel must match.

Every tensor is heads-last: `[batch, *spatial, heads, channels]` with one, two or three spatial
axes. Keys and values are gathered, one copy per query and tap, so memory grows with
prod(spatial) * prod(kernel_size).
"""

from __future__ import annotations

from natc.reference.attention import (
    neighborhood_attention,
    neighborhood_logits,
    neighborhood_sum,
)
from natc.reference.backward import attended_sum, neighborhood_gradients, rpb_sum
from natc.reference.double_backward import neighborhood_second_gradients

__all__ = [
    "attended_sum",
    "neighborhood_attention",
    "neighborhood_gradients",
    "neighborhood_logits",
    "neighborhood_second_gradients",
    "neighborhood_sum",
    "rpb_sum",
]
