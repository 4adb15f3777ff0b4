"""`natten.flops`: multiply-adds of the operators, for fvcore's counter and by shapes.

fvcore counts a multiply-add as one and reads a trace, in which the operators of a release appear
under the names that its handles were registered for. `torch.utils.flop_counter` needs none of
this: natc's operators have formulas of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from natc.compat.natten.operators import named
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError

_Handle = Callable[[list[Any], list[Any]], int]


def functions(release: Release) -> dict[str, Callable[..., Any]]:
    """Return the names of `natten.flops` in a release."""
    late = release.number >= (0, 17, 4)
    handles = _handles(release, with_bias=not late)
    found: dict[str, Callable[..., Any]] = dict(_counters(handles))
    if late:
        found |= {
            "fna_flop_count": fna_flop_count,
            "na_qk_flop_count": na_qk_flop_count,
            "na_av_flop_count": na_av_flop_count,
        }
    if late and not release.union:
        # They became private there.
        found = {name: f for name, f in found.items() if name.endswith("count")}
    elif release.number < (0, 15, 0):
        found = {_NAMES_014.get(name, name): f for name, f in found.items()}
        found = {name: named(f, name) for name, f in found.items()}
    if release.union:
        found |= {old: found[new] for new, old in _NAMES_014.items()}

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

    return found | {"add_natten_handle": add_natten_handle, "get_flops": get_flops}


# 0.14 had no rank 3, and no number in the names of rank 2.
_NAMES_014 = {"qk_2d_rpb_flop": "qk_rpb_flop", "av_2d_flop": "av_flop"}


def _counters(handles: dict[str, _Handle]) -> dict[str, _Handle]:
    found = {}
    for rank in (1, 2, 3):
        for name, counter in (
            (f"qk_{rank}d_rpb_flop", _first(handles, f"{rank}D", "QK")),
            (f"av_{rank}d_flop", _first(handles, f"{rank}D", "AV")),
            ("fna_generic_flops", _first(handles, "Fused", f"{rank}D")),
        ):
            if counter is not None:
                found[name] = counter
    return found


def _first(handles: dict[str, _Handle], *parts: str) -> _Handle | None:
    return next((h for name, h in handles.items() if all(part in name for part in parts)), None)


def _handles(release: Release, *, with_bias: bool) -> dict[str, _Handle]:
    """Return a counter for each operator of a release, by its name in a trace.

    with_bias: a bias (from 0.14 to 0.17.3, whether there is one or not) is an addition for each
    weight, and so is a softmax.
    """
    ranks = (1, 2) if release.number < (0, 15, 0) else (1, 2, 3)
    found: dict[str, _Handle] = {}
    for rank in ranks:
        of_qk = named(_count_qk(rank, with_bias), f"qk_{rank}d_rpb_flop")
        of_av = named(_count_av(rank), f"av_{rank}d_flop")
        found[f"NATTEN{rank}DQKRPBFunction"] = of_qk
        found[f"NATTEN{rank}DAVFunction"] = of_av
        if release.number >= (0, 15, 0):
            found[f"NeighborhoodAttention{rank}DQKAutogradFunction"] = of_qk
            found[f"NeighborhoodAttention{rank}DAVAutogradFunction"] = of_av
        if release.number >= (0, 17, 0):
            counter = named(_count_fused(with_bias), "fna_generic_flops")
            found[f"FusedNeighborhoodAttention{rank}D"] = counter
    return found


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
        # Only tensors are inputs; the kernel size is the first of the other arguments.
        others = inputs[0].uses()[0].user.scalar_args()
        kernel_size = next(each for each in others if isinstance(each, tuple))
        weights = math.prod(query[:-1]) * math.prod(kernel_size)
        has_bias = sum(_is_tensor(each) for each in inputs) > 3
        extra = (1 + has_bias) if with_bias else 0
        return weights * (query[-1] + value[-1] + extra)

    return count


def _is_tensor(value: Any) -> bool:
    return value is not None and value.type().kind() == "TensorType"


def _shape(given: Any, name: str, rank: int | None = None) -> Sequence[int]:
    """Return the shape of a value of a trace, or of a tensor."""
    shape = given.shape if isinstance(given, Tensor) else given.type().sizes()
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
    """Return the FLOPs of attention, two for a multiply-add of a full window, or multiply-adds."""
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
    """Return the FLOPs of query key^T, two for a multiply-add, or multiply-adds."""
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
    """Return the FLOPs of the weighted sum, two for a multiply-add, or multiply-adds."""
    return _products(v_shape, kernel_size, return_macs)


def _products(shape: Sequence[int], kernel_size: Sequence[int], return_macs: bool) -> int:
    # Whether heads are last does not matter to a product.
    sizes = (kernel_size,) * (len(shape) - 3) if isinstance(kernel_size, int) else kernel_size
    return (1 if return_macs else 2) * math.prod(shape) * math.prod(sizes)
