"""Fused neighborhood attention, forward, for windows too large to keep a logit of every tap.

The first pass over the window computes the largest logit and the sum of exponentials together. The
second pass recomputes the logits and sums probability times value. So the registers that a query
needs do not depend on the size of its window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.exponential import Exponential
from natc.compiler.te.gather import Gather, Pairwise
from natc.compiler.te.problem import Problem, Vectors, stage
from natc.operations import HEADS_LAST, OPERATIONS
from natc.spec import KernelSpec


def definition(operation: str, spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the unscheduled function of a forward operation, for any shape."""
    p = Problem(spec, HEADS_LAST, exponential)
    g = Gather(p, from_keys=False)
    inputs, query, key, value = p.attention_inputs(packed=OPERATIONS[operation].packed)
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
    largest, total = largest_and_sum(p, logits)
    again = _logit(g, query, key, rpb, "second")
    weights = g.weights(lambda where, tap: p.exp(again(where, tap) - largest(*where)))
    summed = g.summed(weights, g.tap_vector(value))
    inverse = stage(sites, site, lambda *at: p.const(1.0) / total(*at), "inverse_sum")
    output = stage(
        summed.shape,
        [*site, "d"],
        lambda *at: p.rounded(summed(*at) * inverse(*at[:n])),
        "output",
    )
    lse = None
    if OPERATIONS[operation].with_lse:
        lse = stage(sites, site, lambda *at: largest(*at) + te.log(total(*at)), "lse")
    return p.function([*inputs, rpb, output, lse])


def _logit(g: Gather, query: Vectors, key: Vectors, rpb: te.Tensor | None, which: str) -> Pairwise:
    """Return the logit of each pair, from stages query_, key_ and scores_ + `which`."""
    p, channels = g.problem, g.problem.spec.head_dim

    def of_site(*at: tirx.Var) -> Expr:
        return query(*at)

    names = [*p.site_names, "d"]
    vector = stage((*p.site_shape, channels), names, of_site, f"query_{which}")
    scores = g.product(vector, g.tap_vector(key, f"key_{which}"), f"scores_{which}")
    return g.logits(scores, rpb)


def largest_and_sum(p: Problem, logits: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
    """Return the largest logit of each site and the sum of exp(logit - largest) over its taps.

    One pass computes both (Milakov and Gimelshein 2018, arXiv:1805.02867): whenever a larger logit
    comes, the sum so far is scaled down.
    """

    def combine(first: Sequence[Expr], second: Sequence[Expr]) -> tuple[Expr, Expr]:
        largest = te.max(first[0], second[0])

        def scaled(maximum: Expr, total: Expr) -> Expr:
            # The difference of two equal infinities would be NaN. With the factor 1, the sum of a
            # window of nothing but -inf is above 0, and its logarithm is finite.
            factor = tirx.Select(maximum == largest, p.const(1.0), p.exp(maximum - largest))
            return total * factor

        return largest, scaled(*first) + scaled(*second)

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
