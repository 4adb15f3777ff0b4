"""Fused neighborhood attention, forward: scores, softmax and weighted sum as stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.operations import HEADS_LAST
from natc.spec import KernelSpec
from natc.te.axis import query_axes
from natc.te.exponential import Exponential, polynomial
from natc.te.problem import Packed, Problem, stage


def forward(
    spec: KernelSpec,
    *,
    with_lse: bool = False,
    packed: bool = False,
    exponential: Exponential = polynomial,
    example: Sequence[int] | None = None,
) -> tirx.PrimFunc:
    """Return the unscheduled function of `forward` (`natc.operations`).

    with_lse, packed: that of `forward_lse`, `forward_packed` or `forward_lse_packed`.

    softmax(scale * query . key + rpb) . value over each query's window (`natc.window`); lse is
    the natural logarithm of the sum of exponentials.

    example: (batch, *sizes, heads) to be fixed instead (`natc.te.problem`). A search reasons about
    such a function.
    """
    p = Problem(spec, HEADS_LAST, exponential, example)
    axes = query_axes(p)
    taps, channels = math.prod(spec.kernel_size), spec.value_dim
    if packed:
        qkv, (query, key, value) = p.packed()
        inputs = [qkv]
    else:
        query = p.tensor("query", spec.head_dim)
        key, value = p.kv_tensor("key", spec.head_dim), p.kv_tensor("value", channels)
        inputs = [query, key, value]
    rpb = p.bias() if spec.rpb else None
    sites, site, n = p.site_shape, p.site_names, len(p.site_names)
    window = [axis.taps for axis in axes]

    scaled = stage(
        query.shape,
        [*site, "d"],
        lambda *at: p.accumulate(query(*at)) * p.scale,
        "query_scaled",
    )

    def gathered(tensor: te.Tensor | Packed, name: str) -> te.Tensor:
        # A stage of its own: a schedule may hold the gathered vector in registers.
        def element(*at: tirx.Var) -> Expr:
            where, tap, d = at[:n], at[n:-1], at[-1]
            _, positions, _ = p.parts(where)
            found = [a.position[i, t] for a, i, t in zip(axes, positions, tap)]
            return p.read(tensor, where, found, d)

        return stage(
            (*sites, *window, tensor.shape[-1]), [*site, *p.tap_names, "d"], element, name
        )

    key_tap, value_tap = gathered(key, "key_tap"), gathered(value, "value_tap")
    d = te.reduce_axis((0, spec.head_dim), "d")
    scores = stage(
        (*sites, *window),
        [*site, *p.tap_names],
        lambda *at: te.sum(scaled(*at[:n], d) * p.accumulate(key_tap(*at, d)), d),
        "scores",
    )

    # One index for all taps from here on: the softmax vectorizes over them.
    def logit(*at: tirx.Var) -> Expr:
        where, tap = at[:n], split_tap(at[n], window)
        _, positions, _ = p.parts(where)
        found = scores(*where, *tap)
        if rpb is not None:
            offsets = [a.offset(i, t) for a, i, t in zip(axes, positions, tap)]
            found = found + p.bias_at(rpb, where, offsets)
        attended = all_of([a.attended(i, t) for a, i, t in zip(axes, positions, tap)])
        return tirx.Select(attended, found, p.const(-math.inf))

    logits = stage((*sites, taps), [*site, "t"], logit, "logits")
    t = te.reduce_axis((0, taps), "t")
    largest = stage(sites, site, lambda *at: te.max(logits(*at, t), t), "max_logit")
    weights = stage(
        (*sites, taps),
        [*site, "t"],
        lambda *at: p.exp(logits[at] - base(p, largest[at[:n]])),
        "weights",
    )
    t = te.reduce_axis((0, taps), "t")
    total = stage(sites, site, lambda *at: te.sum(weights(*at, t), t), "sum_weights")

    tap = [te.reduce_axis((0, extent), name) for extent, name in zip(window, p.tap_names)]
    summed = stage(
        (*sites, channels),
        [*site, "d"],
        lambda *at: te.sum(
            weights(*at[:n], joined_tap(tap, window))
            * p.accumulate(value_tap(*at[:n], *tap, at[n])),
            tap,
        ),
        "summed",
    )
    # One division a query; multiplying is cheap enough to be done for each channel.
    inverse = stage(sites, site, lambda *at: p.const(1.0) / total[at], "inverse_sum")
    normalized = stage(
        summed.shape, [*site, "d"], lambda *at: summed[at] * inverse[at[:n]], "normalized"
    )
    output = stage(summed.shape, [*site, "d"], lambda *at: p.rounded(normalized[at]), "output")
    lse = None
    if with_lse:
        lse = stage(sites, site, lambda *at: log_sum(p, largest[at], total[at]), "lse")
    return p.function([*inputs, rpb, output, lse])


def base(p: Problem, largest: Expr) -> Expr:
    """Return what is subtracted from logits before the exponential: the largest logit.

    0 where that is -inf: exponentials are 0 then, and NaN of a NaN, which a maximum passes over.
    """
    return tirx.Select(largest == p.const(-math.inf), p.const(0.0), largest)


def log_sum(p: Problem, largest: Expr, total: Expr) -> Expr:
    """Return the logsumexp from the largest logit and the sum of exp(logit - base).

    inf where that is the largest logit: `total` is NaN then.
    """
    infinite = largest == p.const(math.inf)
    return tirx.Select(infinite, largest, base(p, largest) + te.log(total))


def all_of(conditions: Sequence[Expr]) -> Expr:
    """Return the conjunction of one or more conditions."""
    result, *rest = conditions
    for condition in rest:
        result = tirx.And(result, condition)
    return result


def split_tap(tap: Expr, window: Sequence[int]) -> list[Expr]:
    """Return the tap of each axis of a flattened tap."""
    found = []
    for extent in reversed(window[1:]):
        found.append(tap % extent)
        tap = tap // extent
    return [tap, *reversed(found)]


def joined_tap(taps: Sequence[Expr], window: Sequence[int]) -> Expr:
    """Return the flattened tap, row-major."""
    found = taps[0]
    for tap, extent in zip(taps[1:], window[1:]):
        found = found * extent + tap
    return found
