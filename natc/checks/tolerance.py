"""How far a result may be from the same computation in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Relative error allowed to a computation with inputs of this dtype that accumulates in float32
# (float64: in float64).
RELATIVE_TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}
# An element may be off by this many times the tolerance, as a share of the largest element.
# One wrong element of a big tensor hardly moves the norm; this is what catches it.
ELEMENT_FACTOR = 2.0


class Errors(NamedTuple):
    """Distance of a result from the expected one; equal infinities count as no distance."""

    relative: float  # norm of the difference / norm of the expected
    largest: float  # largest absolute difference / largest absolute expected value


def relative_errors(actual: Tensor, expected64: Tensor) -> Errors:
    """Return the errors of a result of any float dtype and device against float64 values."""
    result = actual.detach().cpu().double()
    expected = expected64.detach().cpu().double()
    same = result == expected
    difference = torch.where(same, 0.0, result - expected)
    finite = torch.where(expected.isfinite(), expected, 0.0)
    if difference.numel() == 0:
        return Errors(0.0, 0.0)
    # An expectation of zero everywhere has no relative error: then the error is absolute.
    norm = finite.norm().item() or 1.0
    peak = finite.abs().max().item() or 1.0
    return Errors(difference.norm().item() / norm, difference.abs().max().item() / peak)


def assert_close_to_float64(
    actual: Tensor, expected64: Tensor, dtype: torch.dtype, name: str
) -> Errors:
    """Raise AssertionError unless a result is as near to float64 values as its dtype allows.

    Args:
        actual: the result, any float dtype and device.
        expected64: the same computation in float64; infinities must agree, NaN never does.
        dtype: of the inputs, which sets the tolerance (a float32 lse of bfloat16 inputs is
            only as exact as bfloat16).
        name: of the result, for the message.

    Returns:
        The errors found.
    """
    assert expected64.dtype == torch.float64, f"{name}: expected64 is {expected64.dtype}"
    assert actual.shape == expected64.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected64.shape)}"
    )
    nan = int(actual.isnan().sum())
    assert nan == 0, f"{name}: {nan} of {actual.numel()} elements are NaN"
    errors = relative_errors(actual, expected64)
    limit = RELATIVE_TOLERANCE[dtype]
    within = errors.relative <= limit and errors.largest <= ELEMENT_FACTOR * limit
    assert within, (
        f"{name}: relative error {errors.relative:.3g} (limit {limit:.3g}), largest element error "
        f"{errors.largest:.3g} (limit {ELEMENT_FACTOR * limit:.3g}), {dtype}"
    )
    return errors


# Where terms cancel, a result may be off by this share of the tolerance times the terms' size.
TERMS_SHARE = 0.25


def assert_close_to_magnitude(
    actual: Tensor, expected64: Tensor, magnitude64: Tensor, dtype: torch.dtype, name: str
) -> Errors:
    """Raise AssertionError unless a result is near to float64 values, for the size of its terms.

    As `assert_close_to_float64`, for results that may be zero or nearly so because terms cancel:
    the gradient of a window with one key, say. No rounding is relative to such a result.

    Args:
        magnitude64: what the result would be if all terms of its sums were positive.
        Others, and returns, as for `assert_close_to_float64`.
    """
    assert actual.shape == expected64.shape == magnitude64.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected64.shape)}"
    )
    nan = int(actual.isnan().sum())
    assert nan == 0, f"{name}: {nan} of {actual.numel()} elements are NaN"
    if actual.numel() == 0:
        return Errors(0.0, 0.0)
    result, expected = actual.detach().cpu().double(), expected64.double()
    difference = torch.where(result == expected, 0.0, result - expected)
    finite = torch.where(expected.isfinite(), expected, 0.0)
    norm = max(finite.norm().item(), TERMS_SHARE * magnitude64.norm().item()) or 1.0
    peak = max(finite.abs().max().item(), TERMS_SHARE * magnitude64.max().item()) or 1.0
    errors = Errors(difference.norm().item() / norm, difference.abs().max().item() / peak)
    limit = RELATIVE_TOLERANCE[dtype]
    within = errors.relative <= limit and errors.largest <= ELEMENT_FACTOR * limit
    worst = int(difference.abs().argmax())
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), difference.shape))
    assert within, (
        f"{name}: relative error {errors.relative:.3g} (limit {limit:.3g}), largest element error "
        f"{errors.largest:.3g} (limit {ELEMENT_FACTOR * limit:.3g}) at {at}, {dtype}"
    )
    return errors
