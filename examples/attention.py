"""Neighborhood attention on a tensor, and what ran it: `python examples/attention.py`."""

from __future__ import annotations

import torch

import natc
from natc.spec import KernelSpec


def main() -> None:
    torch.manual_seed(0)
    # One projection makes query, key and value; they are read from it as they lie.
    qkv = torch.randn(2, 28, 28, 3, 4, 32)  # [batch, height, width, 3, heads, head_dim]
    query, key, value = qkv.unbind(3)
    rpb = 0.02 * torch.randn(4, 13, 13)  # [heads, 2*7-1, 2*7-1]
    print(natc.runtime.explain(KernelSpec.make(7, rpb=True), "cpu"))

    output, lse = natc.na2d(query, key, value, 7, dilation=2, rpb=rpb, return_lse=True)
    print("output", tuple(output.shape), "lse", tuple(lse.shape))

    with natc.force_reference():
        expected = natc.na2d(query, key, value, 7, dilation=2, rpb=rpb)
    error = (output - expected).abs().max() / expected.abs().max()
    print(f"largest error against the reference: {error:.1e}")


if __name__ == "__main__":
    main()
