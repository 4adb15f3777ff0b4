"""`natten.flops`: multiply-adds of the operators, for fvcore's counter and by shapes.

fvcore counts a multiply-add as one operation. It reads a trace, where the operators have the names
for which handles are registered. `torch.utils.flop_counter` needs no handles: natc registers
formulas for its operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from natc.compat.natten.operators import by_name, named
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError

_Handle = Callable[[list[Any], list[Any]], int]


def functions(release: Release) -> dict[str, Callable[..., Any]]:
    """Return the contents of `natten.flops` in a release."""
    late = release.number >= (0, 17, 4)
    handles = _handles(release, with_bias=not late)
    counters = by_name(*handles.values())
    if late:
        counters |= by_name(fna_flop_count, na_qk_flop_count, na_av_flop_count)
    if late and not release.union:
        # The other counters became private in 0.17.4.
        counters = {name: f for name, f in counters.items() if name.endswith("count")}
    elif release.number < (0, 15, 0):
        counters = {_NAMES_014.get(name, name): f for name, f in counters.items()}
        counters = {name: named(f, name) for name, f in counters.items()}
    if release.union:
        counters |= {old: counters[new] for new, old in _NAMES_014.items()}

    def add_natten_handle(flop_ctr: Any) -> Any:
        return flop_ctr.set_op_handle(
            **{f"prim::PythonOp.{name}": handle for name, handle in handles.items()}
        )

    def get_flops(model: Any, input: Any, disable_warnings: bool = False) -> Any:
        from fvcore.nn import FlopCountAnalysis  # type: ignore[import-not-found]

        counter = add_natten_handle(FlopCountAnalysis(model, input))
        if disable_warnings:
            counter = counter.unsupported_ops_warnings(False)
        return counter.total()

    return counters | by_name(add_natten_handle, get_flops)


# 0.14 had no rank 3, and no number in the names of rank 2.
_NAMES_014 = {"qk_2d_rpb_flop": "qk_rpb_flop", "av_2d_flop": "av_flop"}


def _handles(release: Release, *, with_bias: bool) -> dict[str, _Handle]:
    """Return a counter for each operator of a release, by its name in a trace.

    with_bias: count one addition per attention weight for the bias, and one for the softmax, as
    0.14 to 0.17.3 do, also for modules without a bias.
    """
    ranks = (1, 2) if release.number < (0, 15, 0) else (1, 2, 3)
    handles: dict[str, _Handle] = {}
    for rank in ranks:
        of_qk = named(_count_qk(rank, with_bias), f"qk_{rank}d_rpb_flop")
        of_av = named(_count_av(rank), f"av_{rank}d_flop")
        handles[f"NATTEN{rank}DQKRPBFunction"] = of_qk
        handles[f"NATTEN{rank}DAVFunction"] = of_av
        if release.number >= (0, 15, 0):
            handles[f"NeighborhoodAttention{rank}DQKAutogradFunction"] = of_qk
            handles[f"NeighborhoodAttention{rank}DAVAutogradFunction"] = of_av
        if release.number >= (0, 17, 0):
            counter = named(_count_fused(with_bias), "fna_generic_flops")
            handles[f"FusedNeighborhoodAttention{rank}D"] = counter
    return handles


def _count_qk(rank: int, with_bias: bool) -> _Handle:
    def count(inputs: list[Any], outputs: list[Any]) -> int:
        query, attn = _shape(inputs[0], "query", rank), _shape(outputs[0], "attn", rank)
        return math.prod(attn) * (query[-1] + with_bias)

    return count


def _count_av(rank: int) -> _Handle:
    def count(inputs: list[Any], outputs: list[Any]) -> int:
        attn, output = _shape(inputs[0], "attn", rank), _shape(outputs[0], "output", rank)
        return math.prod(attn) * output[-1]

    return count


def _count_fused(with_bias: bool) -> _Handle:
    def count(inputs: list[Any], outputs: list[Any]) -> int:
        query, value = _shape(inputs[0], "query"), _shape(inputs[2], "value")
        # The inputs of a node are its tensors; the first tuple among its constants is kernel_size.
        constants = inputs[0].uses()[0].user.scalar_args()
        kernel_size = next(each for each in constants if isinstance(each, tuple))
        weights = math.prod(query[:-1]) * math.prod(kernel_size)
        has_bias = sum(_is_tensor(each) for each in inputs) > 3
        extra = (1 + has_bias) if with_bias else 0
        return weights * (query[-1] + value[-1] + extra)

    return count


def _is_tensor(value: Any) -> bool:
    return value is not None and value.type().kind() == "TensorType"


def _shape(value: Any, name: str, rank: int | None = None) -> Sequence[int]:
    """Return the shape of a tensor or of a value in a trace."""
    shape = value.shape if isinstance(value, Tensor) else value.type().sizes()
    if rank is not None and len(shape) != rank + 3:
        raise ArgumentError(f"{name} has shape {list(shape)}; it must have {rank + 3} axes.")
    return tuple(shape)


def fna_flop_count(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    v_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Return the FLOPs of attention with whole windows, or its multiply-adds: half as many."""
    options = kernel_size, dilation, is_causal, is_heads_last, return_macs
    return na_qk_flop_count(q_shape, k_shape, *options) + na_av_flop_count(
        q_shape, v_shape, *options
    )


def na_qk_flop_count(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Return the FLOPs of query key^T, or its multiply-adds: half as many."""
    if tuple(q_shape) != tuple(k_shape):
        raise ArgumentError(f"k_shape is {list(k_shape)}; it must be q_shape, {list(q_shape)}.")
    return _products(q_shape, kernel_size, return_macs)


def na_av_flop_count(
    a_shape: Sequence[int],
    v_shape: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Return the FLOPs of the weighted sum of values, or its multiply-adds: half as many."""
    return _products(v_shape, kernel_size, return_macs)


def _products(shape: Sequence[int], kernel_size: Sequence[int], return_macs: bool) -> int:
    # A product of all sizes is the same with heads first or last.
    sizes = (kernel_size,) * (len(shape) - 3) if isinstance(kernel_size, int) else kernel_size
    return (1 if return_macs else 2) * math.prod(shape) * math.prod(sizes)
