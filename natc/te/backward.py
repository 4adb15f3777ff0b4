"""Gradients of fused neighborhood attention, recomputed from query, key and the logsumexp.

With p = exp(scale * query . key + rpb - lse) and ds = p * (d_output . value - delta), over the
pairs of query and key: d_query = scale * sum of ds * key, d_key = scale * sum of ds * query,
d_value = sum of p * d_output (Dao et al. 2022, arXiv:2205.14135, section B.2). Sums over queries
gather over those that attend to a key.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.operations import HEADS_LAST
from natc.spec import KernelSpec
from natc.te.exponential import Exponential
from natc.te.gather import Gather, Pairwise
from natc.te.problem import Problem, stage


class _Tensors:
    """The inputs that gradients have in common."""

    def __init__(self, p: Problem) -> None:
        spec = p.spec
        self.query = p.tensor("query", spec.head_dim)
        self.key = p.kv_tensor("key", spec.head_dim)
        self.value = p.kv_tensor("value", spec.value_dim)
        self.rpb = p.bias() if spec.rpb else None
        self.d_output = p.tensor("d_output", spec.value_dim)
        self.lse = p.tensor("lse", dtype=spec.accumulator)
        self.delta = p.tensor("delta", dtype=spec.accumulator)


def delta(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function of `delta` (`natc.operations`)."""
    p = Problem(spec, HEADS_LAST, exponential)
    d_output, output = (p.tensor(n, spec.value_dim) for n in ("d_output", "output"))
    d = te.reduce_axis((0, spec.value_dim), "d")
    summed = stage(
        p.site_shape,
        p.site_names,
        lambda *at: te.sum(p.accumulate(d_output(*at, d)) * p.accumulate(output(*at, d)), d),
        "summed",
    )
    found = stage(p.site_shape, p.site_names, lambda *at: summed[at], "output")
    return p.function([d_output, output, found])


def d_query(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function of `d_query` (`natc.operations`)."""
    p = Problem(spec, HEADS_LAST, exponential)
    t, g = _Tensors(p), Gather(p, from_keys=False)
    key_tap, value_tap = g.tap_vector(t.key), g.tap_vector(t.value)
    scores = g.product(g.site_vector(t.query), key_tap, "scores")
    d_weights = g.product(g.site_vector(t.d_output), value_tap, "d_weights")
    lse, of_delta = _of_site(g, t.lse), _of_site(g, t.delta)
    weights = g.weights(_d_logit(g, t, scores, d_weights, lse, of_delta))
    result = g.weighted_sum(weights, key_tap, "d_query", p.scale)
    return p.function([t.query, t.key, t.value, t.rpb, t.d_output, t.lse, t.delta, result])


def d_key(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function of `d_key` (`natc.operations`)."""
    p = Problem(spec, HEADS_LAST, exponential)
    t, g = _Tensors(p), Gather(p, from_keys=True)
    query_tap, d_output_tap = g.tap_vector(t.query), g.tap_vector(t.d_output)
    scores = g.product(g.site_vector(t.key), query_tap, "scores")
    d_weights = g.product(g.site_vector(t.value), d_output_tap, "d_weights")
    lse, of_delta = g.scalar_of_tap(t.lse), g.scalar_of_tap(t.delta)
    weights = g.weights(_d_logit(g, t, scores, d_weights, lse, of_delta))
    result = g.weighted_sum(weights, query_tap, "d_key", p.scale)
    return p.function([t.query, t.key, t.value, t.rpb, t.d_output, t.lse, t.delta, result])


def d_value(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function of `d_value` (`natc.operations`)."""
    p = Problem(spec, HEADS_LAST, exponential)
    t, g = _Tensors(p), Gather(p, from_keys=True)
    scores = g.product(g.site_vector(t.key), g.tap_vector(t.query), "scores")
    weights = g.weights(_probability(g, t, scores, g.scalar_of_tap(t.lse)))
    result = g.weighted_sum(weights, g.tap_vector(t.d_output), "d_value")
    return p.function([t.query, t.key, t.rpb, t.d_output, t.lse, result])


def _of_site(g: Gather, tensor: te.Tensor) -> Pairwise:
    return lambda site, tap: tensor[tuple(site)]


def _probability(g: Gather, t: _Tensors, scores: te.Tensor, lse: Pairwise) -> Pairwise:
    p = g.problem
    bias = None if t.rpb is None else g.bias(t.rpb)

    def value(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
        logit = scores(*site, *tap) * p.scale
        if bias is not None:
            logit = logit + bias(site, tap)
        return p.probability(logit, lse(site, tap))

    return value


def _d_logit(
    g: Gather,
    t: _Tensors,
    scores: te.Tensor,
    d_weights: te.Tensor,
    lse: Pairwise,
    of_delta: Pairwise,
) -> Pairwise:
    probability = _probability(g, t, scores, lse)

    def value(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
        return probability(site, tap) * (d_weights(*site, *tap) - of_delta(site, tap))

    return value
