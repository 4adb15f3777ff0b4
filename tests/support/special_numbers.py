"""Comparing tensors that hold NaN and infinities."""

from __future__ import annotations

import torch
from torch import Tensor


def same(actual: Tensor, expected: Tensor, tolerance: float, name: str = "result") -> None:
    """Compare kinds of numbers element by element, and finite ones by value.

    expected: of the same shape; numbers that the dtype of `actual` cannot hold become infinite.
    tolerance: relative to a number, plus relative to the largest number or 1. name: for messages.
    """
    assert actual.shape == expected.shape
    expected = expected.to(actual.dtype)
    for kind in ("isnan", "isposinf", "isneginf"):
        here, there = getattr(actual, kind)(), getattr(expected, kind)()
        assert torch.equal(here, there), (
            f"{name}: {kind} holds of {int(here.sum())} elements, and should of "
            f"{int(there.sum())}; first difference at {(here != there).nonzero()[0].tolist()}"
        )
    finite = expected.isfinite()
    largest = expected[finite].abs().max().item() if bool(finite.any()) else 0.0
    torch.testing.assert_close(
        actual[finite], expected[finite], rtol=tolerance, atol=tolerance * max(largest, 1.0)
    )
