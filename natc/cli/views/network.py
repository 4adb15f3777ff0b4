"""NAT-Mini on a photograph, on kernels and on the reference: checked, timed, pictured."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natc.cli.output import seconds_text
from natc.errors import NatcError
from natc.spec import KernelSpec

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from natc.models import NAT

# A float32 network of 18 attention layers on kernels agrees with the reference to about 1e-6.
ALLOWED_ERROR = 1e-4


def run_network(
    spec: KernelSpec, directory: Path, *, seconds: float, console: Console
) -> dict[str, Any]:
    """Run NAT-Mini with random weights on a photograph, print the results, and return them.

    spec: the kernel that its attention needs; directory: where the picture goes; seconds: time
    to spend on timing. In the result, errors are relative to the largest value on the reference,
    and seconds are medians. Raises NatcError when kernels and reference differ.
    """
    import torch

    from natc import models, runtime
    from natc.demo.compare import compare_network
    from natc.demo.image import photograph
    from natc.demo.pictures import feature_picture
    from natc.ops import NatcFallbackWarning

    torch.manual_seed(0)
    model = models.nat_mini().eval()
    image = photograph()
    with warnings.catch_warnings():
        # A network that ran on the reference both times would agree with itself.
        warnings.simplefilter("error", NatcFallbackWarning)
        comparison = compare_network(model, image)
    choice = runtime.explain(spec, "cpu").choice
    library = choice.library.path if choice else None
    console.print(f"library: {library}")
    errors = ", ".join(f"{error:.1e}" for error in comparison.feature_errors)
    console.print(
        f"largest relative error: feature maps {errors}; logits {comparison.logits_error:.1e} "
        "(the weights are random, so the logits name nothing)"
    )
    # Written this way so that NaN fails too.
    if not comparison.max_error <= ALLOWED_ERROR:
        raise NatcError(
            f"the network on kernels differs from the reference by {comparison.max_error:.1e}; "
            f"at most {ALLOWED_ERROR:.0e} is right. Please report this with: natc doctor --json"
        )
    on_kernels, on_reference = _time(model, image, seconds)
    console.print(
        f"whole network: {seconds_text(on_kernels)} on kernels, "
        f"{seconds_text(on_reference)} on the reference "
        f"({on_reference / on_kernels:.2f} times as long)"
    )
    return {
        "library": library,
        "feature_errors": comparison.feature_errors,
        "logits_error": comparison.logits_error,
        "kernel_seconds": on_kernels,
        "reference_seconds": on_reference,
        "picture": feature_picture(image, comparison.feature_maps, directory / "nat_mini.png"),
    }


def _time(model: NAT, image: Tensor, seconds: float) -> tuple[float, float]:
    """Return the median seconds of the network on kernels and on the reference."""
    import torch

    from natc.bench.clocks import interleave
    from natc.ops import force_reference

    def on_reference() -> None:
        with force_reference():
            model(image)

    with torch.inference_mode():
        calls = {"kernels": lambda: model(image), "reference": on_reference}
        samples = interleave(calls, seconds)
    return statistics.median(samples["kernels"]), statistics.median(samples["reference"])
