"""Joining attentions over different keys into the attention over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError
from natc.reference.layout import accumulator

_FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))


def merge_attentions(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the attention of some queries to all keys from attentions to disjoint parts of them.

    Exact: a softmax over the union is the mean of softmaxes over its parts, weighted by their
    denominators, exp(lse). Differentiable, to any order, in every output and lse.

    An lse of -inf says that nothing was attended: that output has weight 0, and is not looked at,
    as a softmax does not look at logits of -inf. Where every lse is -inf, so is the result's, and
    the output is 0, as a sum over no keys; it is NaN where an output is, which is what a softmax
    of nothing but -inf gives.

    Args:
        outputs: one or more of `[..., value_dim]`, of one shape, float dtype and device.
        lses: for each output the natural log of its softmax's denominator, `[...]`, any float
            dtype.

    Returns:
        output `[..., value_dim]` in the dtype of the outputs, and lse `[...]` in float32 (float64
        where an output or lse is).

    Raises:
        ArgumentError: other numbers, shapes or devices (a ValueError).
        ArgumentTypeError: another type or dtype (a TypeError).
    """
    for name, given in (("outputs", outputs), ("lses", lses)):
        if not isinstance(given, (tuple, list)):
            raise ArgumentTypeError(
                f"{name} is a {type(given).__name__}; it must be a list or tuple of tensors."
            )
    if not outputs or len(outputs) != len(lses):
        raise ArgumentError(
            f"lses has {len(lses)} entries and outputs {len(outputs)}; "
            "they must have as many, one or more."
        )
    for index, (output, lse) in enumerate(zip(outputs, lses)):
        _check(f"outputs[{index}]", output, outputs[0])
        _check(f"lses[{index}]", lse, outputs[0])
        if output.dtype is not outputs[0].dtype:
            raise ArgumentTypeError(
                f"outputs[{index}] has dtype {output.dtype}; it must be that of outputs[0], "
                f"{outputs[0].dtype}."
            )
        if output.ndim == 0 or output.shape != outputs[0].shape:
            raise ArgumentError(
                f"outputs[{index}] has shape {list(output.shape)}; it must be [..., value_dim] "
                f"and that of outputs[0], {list(outputs[0].shape)}."
            )
        if lse.shape != output.shape[:-1]:
            raise ArgumentError(
                f"lses[{index}] has shape {list(lse.shape)}; it must be that of outputs[{index}] "
                f"without its last axis, {list(output.shape[:-1])}."
            )
    return merge(outputs, lses, outputs[0].dtype)


def merge(
    outputs: Sequence[Tensor], lses: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Do what `merge_attentions` does, unchecked; dtype: of the output."""
    compute = accumulator(dtype, *(tensor.dtype for tensor in (*outputs, *lses)))
    every = torch.stack([lse.to(compute) for lse in lses])
    # A constant to the derivative: it cancels. Of finite size where nothing was attended.
    largest = every.detach().amax(0)
    nowhere = largest == -math.inf
    weights = (every - largest.masked_fill(nowhere, 0)).exp()
    # 1 where it would be 0, of which the logarithm has no derivative.
    total = weights.sum(0).masked_fill(nowhere, 1)
    shares = (weights / total).unsqueeze(-1)
    # No derivative reaches an output that is not looked at.
    ignored = ((every == -math.inf) & ~nowhere).unsqueeze(-1)
    terms = [
        share * output.to(compute).masked_fill(without, 0)
        for share, output, without in zip(shares, outputs, ignored)
    ]
    # An infinite lse is that of the whole, as torch.logsumexp has it; the output is NaN then.
    lse = torch.where(largest == math.inf, largest, largest + total.log())
    return sum(terms[1:], terms[0]).to(dtype), lse


def _check(name: str, given: Any, first: Any) -> None:
    if not isinstance(given, Tensor):
        raise ArgumentTypeError(f"{name} is a {type(given).__name__}; it must be a torch.Tensor.")
    if given.dtype not in _FLOATS:
        raise ArgumentTypeError(
            f"{name} has dtype {given.dtype}; it must be torch.float32, torch.float16, "
            "torch.bfloat16 or torch.float64."
        )
    if given.device != first.device:
        raise ArgumentError(
            f"{name} is on device {given.device}; it must be on that of outputs[0], "
            f"{first.device}."
        )
