"""The operators `torch.ops.natc.*`: schemas, shapes for tracing, derivatives, vmap, FLOP counts.

They check no arguments; `natc.na2d` and `natc.functional` do. The same operators serve every rank:
an option has one entry for each spatial axis.
"""

from __future__ import annotations

from natc.dispatch.fallback import NatcFallbackWarning, force_reference
from natc.ops import batching as _batching  # noqa: F401 -- registers
from natc.ops import flops as _flops  # noqa: F401 -- registers
from natc.ops.fused import backward, forward, forward_lse, run_forward, run_forward_lse
from natc.ops.packed import (
    backward_packed,
    forward_lse_packed,
    forward_packed,
    run_forward_lse_packed,
    run_forward_packed,
)
from natc.ops.unfused import av, inverse_av, qk, run_av, run_qk, sum_rpb

__all__ = [
    "NatcFallbackWarning",
    "av",
    "backward",
    "backward_packed",
    "force_reference",
    "forward",
    "forward_lse",
    "forward_lse_packed",
    "forward_packed",
    "inverse_av",
    "qk",
    "run_av",
    "run_forward",
    "run_forward_lse",
    "run_forward_lse_packed",
    "run_forward_packed",
    "run_qk",
    "sum_rpb",
]
