"""Fused neighborhood attention, forward, for windows too large to keep a logit of every tap.

A first pass over the window finds the largest logit and the sum of exponentials, both at once; a
second one computes the logits again and sums up the values. What a query keeps does not depend on
the size of its window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from tvm import te, tirx
from tvm.ir import Expr

from natc.operations import HEADS_LAST, OPERATIONS
from natc.spec import KernelSpec
from natc.te.exponential import Exponential
from natc.te.gather import Gather, Pairwise
from natc.te.problem import Packed, Problem, stage

_Vectors: TypeAlias = te.Tensor | Packed


def definition(operation: str, spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the unscheduled function of a forward operation, for any shape."""
    with_lse = "lse" in OPERATIONS[operation].results
    packed = "qkv" in OPERATIONS[operation].tensors
    p = Problem(spec, HEADS_LAST, exponential)
    g = Gather(p, from_keys=False)
    query: _Vectors
    key: _Vectors
    value: _Vectors
    if packed:
        qkv, (query, key, value) = p.packed()
        inputs = [qkv]
    else:
        query = p.tensor("query", spec.head_dim)
        key = p.kv_tensor("key", spec.head_dim)
        value = p.kv_tensor("value", spec.value_dim)
        inputs = [query, key, value]
    rpb = p.bias() if spec.rpb else None
    sites, site, n = p.site_shape, p.site_names, len(p.site_names)

    logit = _logit(g, query, key, rpb, "first")
    logits = stage(
        (*sites, *g.window),
        [*site, *p.tap_names],
        lambda *at: tirx.Select(
            g.attended(at[:n], at[n:]), logit(at[:n], at[n:]), p.const(-math.inf)
        ),
        "logits",
    )
    largest, total = _largest_and_sum(p, logits)
    again = _logit(g, query, key, rpb, "second")
    weights = g.weights(lambda where, tap: p.exp(again(where, tap) - largest(*where)))
    value_tap = _tap_vector(g, value, spec.value_dim, "value_tap")
    tap = [te.reduce_axis((0, extent), name) for extent, name in zip(g.window, p.tap_names)]
    shape, names = (*sites, spec.value_dim), [*site, "d"]
    summed = stage(
        shape,
        names,
        lambda *at: te.sum(
            weights(*at[:n], *tap) * p.accumulate(value_tap(*at[:n], *tap, at[n])), tap
        ),
        "summed",
    )
    inverse = stage(sites, site, lambda *at: p.const(1.0) / total(*at), "inverse_sum")
    output = stage(shape, names, lambda *at: p.rounded(summed(*at) * inverse(*at[:n])), "output")
    lse = None
    if with_lse:
        lse = stage(sites, site, lambda *at: largest(*at) + te.log(total(*at)), "lse")
    return p.function([*inputs, rpb, output, lse])


def _logit(
    g: Gather, query: _Vectors, key: _Vectors, rpb: te.Tensor | None, which: str
) -> Pairwise:
    """Return the logits of pairs, from stages of their own: query_, key_ and scores_."""
    p, channels = g.problem, g.problem.spec.head_dim

    def of_site(*at: tirx.Var) -> Expr:
        return query(*at)

    names = [*p.site_names, "d"]
    vector = stage((*p.site_shape, channels), names, of_site, f"query_{which}")
    scores = g.product(vector, _tap_vector(g, key, channels, f"key_{which}"), f"scores_{which}")
    bias = None if rpb is None else g.bias(rpb)

    def value(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
        found = scores(*site, *tap) * p.scale
        return found if bias is None else found + bias(site, tap)

    return value


def _tap_vector(g: Gather, tensor: _Vectors, channels: int, name: str) -> te.Tensor:
    p, n = g.problem, len(g.problem.site_names)

    def element(*at: tirx.Var) -> Expr:
        return p.read(tensor, at[:n], g.positions(at[:n], at[n:-1]), at[-1])

    shape = (*p.site_shape, *g.window, channels)
    return stage(shape, [*p.site_names, *p.tap_names, "d"], element, name)


def _largest_and_sum(p: Problem, logits: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
    """Return the largest logit of each site and the sum of exp(logit - largest).

    Found together (Milakov and Gimelshein 2018, arXiv:1805.02867): what was summed up is scaled
    down whenever a larger logit comes.
    """

    def combine(left: Sequence[Expr], right: Sequence[Expr]) -> tuple[Expr, Expr]:
        largest = te.max(left[0], right[0])

        def scaled(maximum: Expr, total: Expr) -> Expr:
            # Where both are -inf, or both inf, the difference would be NaN. So a window of nothing
            # but -inf has a sum above 0, and its logarithm is finite.
            factor = tirx.Select(maximum == largest, p.const(1.0), p.exp(maximum - largest))
            return total * factor

        return largest, scaled(*left) + scaled(*right)

    def identity(dtype: str, _: str) -> tuple[Expr, Expr]:
        return tirx.const(-math.inf, dtype), tirx.const(0.0, dtype)

    reduction = te.comm_reducer(combine, identity, "largest_and_sum")
    taps = [te.reduce_axis((0, n), name) for n, name in zip(logits.shape[-p.rank :], p.tap_names)]
    largest, total = stage(
        p.site_shape,
        p.site_names,
        lambda *at: reduction((logits(*at, *taps), p.const(1.0)), axis=taps),
        "largest_and_sum",
    )
    return largest, total
