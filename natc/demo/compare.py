"""Does the network say the same with kernels and with the reference?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natc import ops
from natc.models import NAT


@dataclass(frozen=True)
class NetworkComparison:
    """How far a network on kernels is from the same network on the reference.

    An error is the largest absolute difference, divided by the reference's largest absolute
    value. `feature_maps` are those that the kernels computed, one a level.
    """

    logits_error: float
    feature_errors: tuple[float, ...]
    logits: Tensor
    feature_maps: tuple[Tensor, ...]

    @property
    def max_error(self) -> float:
        """The largest of all errors; NaN if any is."""
        errors = torch.tensor([self.logits_error, *self.feature_errors], device="cpu")
        return float(errors.max())


def compare_network(model: NAT, image: Tensor) -> NetworkComparison:
    """Run `model` on `image` twice, on kernels and on the reference, and compare.

    The model is used in evaluation mode, without gradients, and is left in the mode it was in.

    Args:
        model: a NAT, on any device.
        image: normalized `[batch, channels, height, width]` on the same device.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            maps = model.forward_features(image)
            logits = model.forward_head(maps[-1])
            with ops.force_reference():
                expected_maps = model.forward_features(image)
                expected_logits = model.forward_head(expected_maps[-1])
    finally:
        model.train(training)
    return NetworkComparison(
        logits_error=relative_error(logits, expected_logits),
        feature_errors=tuple(
            relative_error(actual, expected)
            for actual, expected in zip(maps, expected_maps, strict=True)
        ),
        logits=logits,
        feature_maps=tuple(maps),
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return max|actual - expected| / max|expected|, computed in float64; 0 for empty tensors.

    Args:
        actual: any floating tensor.
        expected: a tensor of the same shape; if it is all zero, the error is absolute.
    """
    if expected.numel() == 0:
        return 0.0
    expected = expected.detach().double()
    size = float(expected.abs().max())
    difference = float((actual.detach().double() - expected).abs().max())
    return difference / size if size > 0.0 else difference
