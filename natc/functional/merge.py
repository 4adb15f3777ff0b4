"""`merge_attentions`: attention to all keys from attentions to disjoint parts of the keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError
from natc.reference.layout import accumulator
from natc.reference.validate import check_dense, check_device, check_dtype


def merge_attentions(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the attention of queries to all keys from their attentions to disjoint parts of them.

    The result is exact: the softmax over all keys is the mean of the softmaxes over the parts,
    weighted by their denominators, exp(lse). Differentiable, to any order, in every output and
    lse.

    An lse of -inf means that the query attended to no key of that part: its output is ignored,
    whatever it holds. If every lse of a query is -inf, its merged lse is -inf and its merged
    output is the sum of its outputs: 0 for parts without keys, NaN if a part's output is NaN, as
    the softmax of logits that are all -inf is.

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
    for name, parts in (("outputs", outputs), ("lses", lses)):
        if not isinstance(parts, (tuple, list)):
            raise ArgumentTypeError(
                f"{name} is a {type(parts).__name__}; it must be a list or tuple of tensors."
            )
    if not outputs or len(outputs) != len(lses):
        raise ArgumentError(
            f"lses has {len(lses)} entries and outputs {len(outputs)}; "
            "they must have as many, one or more."
        )
    for index, (output, lse) in enumerate(zip(outputs, lses)):
        for name, tensor in ((f"outputs[{index}]", output), (f"lses[{index}]", lse)):
            check_dense(name, tensor)
            check_dtype(name, tensor)
            check_device(name, tensor, "outputs[0]", outputs[0])
        if output.dtype is not outputs[0].dtype:
            raise ArgumentTypeError(
                f"outputs[{index}] has dtype {output.dtype}; it must be {outputs[0].dtype}, "
                "as outputs[0] is."
            )
        if output.ndim == 0 or output.shape != outputs[0].shape:
            raise ArgumentError(
                f"outputs[{index}] has shape {list(output.shape)}; it must be "
                f"[..., value_dim], the same as outputs[0], {list(outputs[0].shape)}."
            )
        if lse.shape != output.shape[:-1]:
            raise ArgumentError(
                f"lses[{index}] has shape {list(lse.shape)}; it must be "
                f"{list(output.shape[:-1])}, as outputs[{index}] without its last axis."
            )
    return merge(outputs, lses, outputs[0].dtype)


def merge(
    outputs: Sequence[Tensor], lses: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return `merge_attentions` of checked tensors, with the output in `dtype`."""
    compute = accumulator(dtype, *(tensor.dtype for tensor in (*outputs, *lses)))
    stacked = torch.stack([lse.to(compute) for lse in lses])
    # Detached: it cancels, so that its derivative is 0.
    largest = stacked.detach().amax(0)
    nowhere = largest == -math.inf
    weights = (stacked - largest.masked_fill(nowhere, 0)).exp()
    # 1 instead of 0, whose logarithm has no derivative.
    total = weights.sum(0).masked_fill(nowhere, 1)
    shares = (weights / total).unsqueeze(-1)
    # Masked, so that no derivative reaches an ignored output.
    ignored = ((stacked == -math.inf) & ~nowhere).unsqueeze(-1)
    terms = [
        share * output.to(compute).masked_fill(without, 0)
        for share, output, without in zip(shares, outputs, ignored)
    ]
    # If an lse is inf, so is the merged lse, as in torch.logsumexp; the output is NaN then.
    lse = torch.where(largest == math.inf, largest, largest + total.log())
    return sum(terms[1:], terms[0]).to(dtype), lse
