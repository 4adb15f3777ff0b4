"""How far a result may be from the same computation in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from natc.errors import CheckError

# Relative error allowed to a computation with inputs of this dtype that accumulates in float32
# (float64: in float64).
RELATIVE_TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}
# An element may be off by this many times the tolerance, as a share of the largest element.
# One wrong element of a big tensor hardly moves the norm; this limit catches it.
ELEMENT_FACTOR = 2.0
# Where terms cancel, a result may be off by this share of the tolerance times the terms' size.
TERMS_SHARE = 0.25


class Errors(NamedTuple):
    """Distance of a result from the expected values; equal infinities have distance 0."""

    relative: float  # norm of the difference / norm of the expected values
    largest: float  # largest absolute difference / largest absolute expected value


def relative_errors(actual: Tensor, expected64: Tensor, terms64: Tensor | None = None) -> Errors:
    """Return the errors of a result of any float dtype and device against float64 values.

    terms64: see `check_close`.
    """
    difference = _difference(actual, expected64)
    if difference.numel() == 0:
        return Errors(0.0, 0.0)
    expected = expected64.detach().cpu().double()
    finite = torch.where(expected.isfinite(), expected, 0.0)
    norm, peak = finite.norm().item(), finite.abs().max().item()
    if terms64 is not None:
        norm = max(norm, TERMS_SHARE * terms64.norm().item())
        peak = max(peak, TERMS_SHARE * terms64.max().item())
    # An expectation of zero everywhere has no relative error: then the error is absolute.
    return Errors(
        difference.norm().item() / (norm or 1.0), difference.abs().max().item() / (peak or 1.0)
    )


def _difference(actual: Tensor, expected64: Tensor) -> Tensor:
    result, expected = actual.detach().cpu().double(), expected64.detach().cpu().double()
    return torch.where(result == expected, 0.0, result - expected)


def check_close(
    actual: Tensor,
    expected64: Tensor,
    dtype: torch.dtype,
    name: str,
    *,
    terms64: Tensor | None = None,
) -> Errors:
    """Raise CheckError unless a result is as near to float64 values as its dtype allows.

    Returns the errors of the result.

    expected64: the same computation in float64; infinities must agree, NaN never does. dtype: of
    the inputs, which sets the tolerance (a float32 lse of bfloat16 inputs is only as exact as
    bfloat16). terms64: the result if all terms of its sums were positive. Give it for results that
    may be nearly zero because terms cancel, such as the gradient of a window with one key: no
    rounding is relative to such a result.
    """
    if expected64.dtype != torch.float64:
        raise CheckError(f"{name}: expected64 is {expected64.dtype}; it must be float64")
    for tensor in (expected64,) if terms64 is None else (expected64, terms64):
        if actual.shape != tensor.shape:
            raise CheckError(
                f"{name}: shape {tuple(actual.shape)}, expected {tuple(tensor.shape)}"
            )
    if nan := int(actual.isnan().sum()):
        raise CheckError(f"{name}: {nan} of {actual.numel()} elements are NaN")
    errors = relative_errors(actual, expected64, terms64)
    limit = RELATIVE_TOLERANCE[dtype]
    if not (errors.relative <= limit and errors.largest <= ELEMENT_FACTOR * limit):
        worst = _difference(actual, expected64).abs().argmax()
        index = tuple(int(i) for i in torch.unravel_index(worst, actual.shape))
        raise CheckError(
            f"{name}: relative error {errors.relative:.3g} (limit {limit:.3g}), largest element "
            f"error {errors.largest:.3g} (limit {ELEMENT_FACTOR * limit:.3g}) at {index}, {dtype}"
        )
    return errors
