"""Checks of forward kernels that are the same on CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import natc
from natc.checks.guarded import call_guarded, scalars
from natc.checks.inputs import Inputs, inputs_of
from natc.checks.tolerance import RELATIVE_TOLERANCE, check_close
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec

# [batch, height, width, heads], dilation, and scale; None is the default.
Map = tuple[tuple[int, int, int, int], tuple[int, int], float | None]


def maps(spec: KernelSpec) -> Iterator[Map]:
    """Yield maps of every kind for a kernel of two axes."""
    taps_h, taps_w = spec.kernel_size
    yield (1, 1, 1, 1), (1, 1), None
    yield (3, taps_h, taps_w, 3), (1, 1), None  # the window is the map
    yield (1, max(taps_h - 1, 1), taps_w + 3, 2), (1, 1), None  # smaller on one axis
    yield (2, 2 * taps_h + 1, taps_w + 1, 3), (2, 1), None
    yield (1, 17, 5, 5), (3, 2), None  # dilation divides neither axis
    yield (1, 1, 37, 1), (7, 4), None
    yield (1, 6, 7, 2), (11, 100), None  # every query alone in its group
    yield (1, 9, 8, 1), (1, 2), -1.5
    yield (2, 4, 9, 1), (1, 1), 0.0


def call_forward(
    function: Callable[..., Any],
    inputs: Inputs,
    *,
    scale: float,
    dilation: Sequence[int] | None = None,
    with_lse: bool = False,
) -> list[Tensor]:
    """Return [output] or [output, lse] of one call of a forward function on guarded copies."""
    query, value = inputs.query, inputs.value
    output = ((*query.shape[:-1], value.shape[-1]), query.dtype)
    lse = (query.shape[:-1], torch.promote_types(query.dtype, torch.float32))
    operation, results = ("forward_lse", [output, lse]) if with_lse else ("forward", [output])
    return call_guarded(function, operation, inputs, results, scalars(inputs, scale, dilation))


def check_forward(
    results: Sequence[Tensor],
    inputs: Inputs,
    kernel_size: tuple[int, ...],
    *,
    scale: float,
    dilation: int | tuple[int, ...] = 1,
) -> None:
    """Compare [output] or [output, lse] with the reference in float64."""
    *exact, rpb = (None if t is None else t.cpu() for t in inputs.to_float64())
    output, lse = neighborhood_attention(
        *exact, kernel_size, dilation=dilation, scale=scale, rpb=rpb, return_lse=True
    )
    check_close(results[0], output, inputs.query.dtype, "output")
    for actual in results[1:]:
        assert actual.dtype == torch.promote_types(inputs.query.dtype, torch.float32)
        # A logarithm may be near zero, where its error is not relative. It is never rounded to
        # the inputs' dtype.
        error = (actual.cpu().double() - lse).abs().max().item()
        assert error <= RELATIVE_TOLERANCE[torch.float32] * max(lse.abs().max().item(), 1.0)


def check_forwards(
    function: Callable[[str], Any], spec: KernelSpec, example: Map, device: str = "cpu"
) -> None:
    """Check `forward` and `forward_lse`, called directly and through natc.na2d.

    function: returns the compiled function of an operation.
    """
    leading, dilation, scale = example
    inputs = inputs_of(spec, leading, device=device)
    options: dict[str, Any] = {
        "dilation": dilation,
        "scale": spec.head_dim**-0.5 if scale is None else scale,
    }
    output = call_forward(function("forward"), inputs, **options)
    both = call_forward(function("forward_lse"), inputs, **options, with_lse=True)
    for results in (output, both):
        check_forward(results, inputs, spec.kernel_size, **options)
    options |= {"scale": scale, "rpb": inputs.rpb}
    assert_same(natc.na2d(*inputs[:3], spec.kernel_size, **options, return_lse=True), both)
    assert_same([natc.na2d(*inputs[:3], spec.kernel_size, **options)], output)


def assert_same(actual: Any, expected: Any) -> None:
    """Compare two sequences of tensors bit by bit."""
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def self_attention(inputs: Inputs, kernel_size: tuple[int, int]) -> Tensor:
    """Return torch's attention of every query to every key, in float64.

    The window of a query on a map of at most `kernel_size` is the whole map.
    """
    _, height, width, heads, _ = inputs.query.shape
    query, key, value = (t.double().flatten(1, 2).transpose(1, 2) for t in inputs[:3])
    bias = None
    if inputs.rpb is not None:
        row, column = (torch.arange(n, device=query.device) for n in (height, width))
        down = (row[None, :] - row[:, None] + kernel_size[0] - 1)[:, None, :, None]
        across = (column[None, :] - column[:, None] + kernel_size[1] - 1)[None, :, None, :]
        bias = inputs.rpb.double()[:, down, across].reshape(heads, height * width, -1)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return output.transpose(1, 2).unflatten(1, (height, width))
