"""Neighborhood attention on a tensor, and what ran it: `python examples/attention.py`."""

from __future__ import annotations

import torch

import natc
from natc.functional import na2d_qkvpacked
from natc.spec import KernelSpec


def main() -> None:
    torch.manual_seed(0)
    # [batch, height, width, heads, head_dim]
    query, key, value = torch.randn(3, 2, 28, 28, 4, 32).unbind()
    rpb = 0.02 * torch.randn(4, 13, 13)  # [heads, 2*7-1, 2*7-1]
    print(natc.runtime.explain(KernelSpec.make(7, rpb=True), "cpu"))

    output, lse = natc.na2d(query, key, value, 7, dilation=2, rpb=rpb, return_lse=True)
    print("output", tuple(output.shape), "lse", tuple(lse.shape))

    # Where one projection makes all three, they are read as they lie, without a copy.
    qkv = torch.stack((query, key, value), dim=3)  # [batch, height, width, 3, heads, head_dim]
    packed = na2d_qkvpacked(qkv, 7, dilation=2, rpb=rpb)
    torch.testing.assert_close(packed, output)

    with natc.force_reference():
        expected = natc.na2d(query, key, value, 7, dilation=2, rpb=rpb)
    error = (output - expected).abs().max() / expected.abs().max()
    print(f"largest error against the reference: {error:.1e}")


if __name__ == "__main__":
    main()
