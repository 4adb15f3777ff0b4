"""Batching rules for `torch.vmap`: the mapped axis becomes part of the batch if it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from natc.ops.fused import backward, forward, forward_lse
from natc.ops.library import library
from natc.ops.packed import backward_packed, forward_lse_packed, forward_packed
from natc.ops.unfused import av, inverse_av, qk, sum_rpb


def _register(
    operator: Callable[..., Any],
    tensors: int,
    *,
    shared: int | None = None,
    sums: Callable[..., bool] = lambda *_: False,
) -> None:
    """Register the batching rule of an operator.

    The mapped axis joins the batch, so that one call serves all slices. That is not possible, and
    each slice gets a call of its own, if the bias is mapped or a result sums over the batch.

    Args:
        tensors: how many of the operator's first arguments are tensors. Their first axis is the
            batch.
        shared: position of the bias among them, which has no batch.
        sums: returns, for the operator's arguments, whether a result sums over the batch.
    """

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        size: int = info.batch_size
        variables, constants = arguments[:tensors], arguments[tensors:]
        own_bias = shared is not None and in_dims[shared] is not None
        if own_bias or sums(*arguments):
            slices = [
                [
                    t if t is None or dim is None else t.select(dim, i)
                    for t, dim in zip(variables, in_dims)
                ]
                for i in range(size)
            ]
            each = [_as_tuple(operator(*variables, *constants)) for variables in slices]
            return _results([torch.stack(results) for results in zip(*each)])
        folded = [
            t if t is None or i == shared else _mapped_first(t, dim, size).flatten(0, 1)
            for i, (t, dim) in enumerate(zip(variables, in_dims))
        ]
        results = _as_tuple(operator(*folded, *constants))
        return _results([_unfolded(result, size) for result in results])

    torch.library.register_vmap(operator, rule, lib=library)  # type: ignore[arg-type]


def _mapped_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a tensor with its mapped axis, of length size, first; expanded if dim is None."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _unfolded(result: Tensor, size: int) -> Tensor:
    """Return a result with its first axis, the batch, split into the mapped axis and the batch."""
    if result.ndim == 1:  # the placeholder of a gradient that is not wanted
        return result.expand(size, -1)
    return result.unflatten(0, (size, result.shape[0] // size))


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _results(results: list[Tensor]) -> tuple[Any, Any]:
    """Return the results of a rule with their mapped axes: 0."""
    return (results[0], 0) if len(results) == 1 else (tuple(results), (0,) * len(results))


def _wants_bias(*arguments: Any) -> bool:
    """Return whether these arguments of `backward` want the gradient of the bias."""
    rpb, wanted = arguments[5], arguments[8]
    return rpb is not None and wanted[3]


def _wants_packed_bias(*arguments: Any) -> bool:
    """Return whether these arguments of `backward_packed` want the gradient of the bias."""
    rpb, wanted = arguments[3], arguments[6]
    return rpb is not None and wanted[1]


_register(forward, 4, shared=3)
_register(forward_lse, 4, shared=3)
_register(forward_packed, 2, shared=1)
_register(forward_lse_packed, 2, shared=1)
_register(backward, 8, shared=5, sums=_wants_bias)
_register(backward_packed, 6, shared=3, sums=_wants_packed_bias)
_register(qk, 3, shared=2)
_register(av, 2)
_register(inverse_av, 2)
_register(sum_rpb, 1, sums=lambda *_: True)
