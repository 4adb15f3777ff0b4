"""Batching rules for `torch.vmap`: the mapped axis becomes part of the batch where it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from natc.ops.fused import backward, forward, forward_lse
from natc.ops.library import library
from natc.ops.packed import forward_lse_packed, forward_packed
from natc.ops.unfused import av, inverse_av, qk, sum_rpb


def _register(
    operator: Callable[..., Any],
    tensors: int,
    *,
    shared: int | None = None,
    sums: Callable[..., bool] = lambda *_: False,
) -> None:
    """Give an operator its rule.

    tensors: how many of its first arguments are tensors, all with a batch as their first axis but
    the one at position `shared`, the bias. sums: of the arguments, whether a result is a sum over
    the batch: then, as with a bias for each slice, slices cannot share a call.
    """

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        size: int = info.batch_size
        given, options = arguments[:tensors], arguments[tensors:]
        own_bias = shared is not None and in_dims[shared] is not None
        if own_bias or sums(*arguments):
            slices = [
                [
                    t if t is None or dim is None else t.select(dim, i)
                    for t, dim in zip(given, in_dims)
                ]
                for i in range(size)
            ]
            each = [_as_tuple(operator(*one, *options)) for one in slices]
            return _one_or_all([torch.stack(results) for results in zip(*each)], 0)
        folded = [
            t if t is None or i == shared else _mapped_first(t, dim, size).flatten(0, 1)
            for i, (t, dim) in enumerate(zip(given, in_dims))
        ]
        results = _as_tuple(operator(*folded, *options))
        return _one_or_all([_unfolded(result, size) for result in results], 0)

    torch.library.register_vmap(operator, rule, lib=library)  # type: ignore[arg-type]


def _mapped_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _unfolded(result: Tensor, size: int) -> Tensor:
    if result.ndim == 1:  # It stands for a gradient that is not wanted.
        return result.expand(size, -1)
    return result.unflatten(0, (size, result.shape[0] // size))


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _one_or_all(results: list[Tensor], dim: int) -> tuple[Any, Any]:
    return (results[0], dim) if len(results) == 1 else (tuple(results), (dim,) * len(results))


def _wants_bias(*arguments: Any) -> bool:
    rpb, wanted = arguments[5], arguments[8]
    return rpb is not None and wanted[3]


_register(forward, 4, shared=3)
_register(forward_lse, 4, shared=3)
_register(forward_packed, 2, shared=1)
_register(forward_lse_packed, 2, shared=1)
_register(backward, 8, shared=5, sums=_wants_bias)
_register(qk, 3, shared=2)
_register(av, 2)
_register(inverse_av, 2)
_register(sum_rpb, 1, sums=lambda *_: True)
