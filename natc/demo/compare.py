"""Compares a network on kernels with the same network on the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natc import ops, runtime
from natc.checks.tolerance import relative_errors
from natc.models import NAT
from natc.nn import NeighborhoodAttention2D
from natc.spec import KernelSpec


@dataclass(frozen=True)
class NetworkComparison:
    """How far a network on kernels is from the same network on the reference.

    An error is the largest absolute difference, divided by the reference's largest absolute
    value. `feature_maps` come from the kernels, one for each level. `covered` and `uncovered` name
    the kernels that the network needs. Layers whose kernel is uncovered ran on the reference both
    times, so the comparison tells nothing about them.
    """

    logits_error: float
    feature_errors: tuple[float, ...]
    logits: Tensor
    feature_maps: tuple[Tensor, ...]
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]

    @property
    def max_error(self) -> float:
        """The largest of all errors; NaN if any is."""
        every = [self.logits_error, *self.feature_errors]
        errors = torch.tensor(every, dtype=torch.float64, device="cpu")
        return float(errors.max())


def compare_network(model: NAT, image: Tensor) -> NetworkComparison:
    """Run `model` on `image` twice, on kernels and on the reference, and compare.

    The model is used in evaluation mode, without gradients, and is left in the mode it was in.
    image: normalized `[batch, channels, height, width]` on the model's device.
    """
    specs = attention_specs(model, image.dtype)
    has_kernel = {spec: runtime.explain(spec, image.device).choice is not None for spec in specs}
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            final, maps = model.forward_intermediates(image, output_fmt="NHWC")
            logits = model.forward_head(final)
            with ops.force_reference():
                final, expected_maps = model.forward_intermediates(image, output_fmt="NHWC")
                expected_logits = model.forward_head(final)
    finally:
        model.train(training)
    return NetworkComparison(
        logits_error=_error(logits, expected_logits),
        feature_errors=tuple(
            _error(actual, expected) for actual, expected in zip(maps, expected_maps, strict=True)
        ),
        logits=logits,
        feature_maps=tuple(maps),
        covered=tuple(spec.name for spec in specs if has_kernel[spec]),
        uncovered=tuple(spec.name for spec in specs if not has_kernel[spec]),
    )


def attention_specs(model: torch.nn.Module, dtype: torch.dtype) -> list[KernelSpec]:
    """List the kernels that the attention layers of `model` ask for on inputs of `dtype`.

    Raises SpecError if no kernel exists for a layer's kernel size or head dim, or for `dtype`.
    """
    layers = [m for m in model.modules() if isinstance(m, NeighborhoodAttention2D)]
    name = str(dtype).removeprefix("torch.")
    specs = [KernelSpec(2, m.kernel_size, m.head_dim, name, m.rpb is not None) for m in layers]
    return list(dict.fromkeys(specs))


def _error(actual: Tensor, expected: Tensor) -> float:
    return relative_errors(actual, expected.double()).largest
