"""Gradients of fused neighborhood attention, recomputed from query, key and the logsumexp.

With p = exp(scale * query . key + rpb - lse) and ds = p * (d_output . value - delta), over the
pairs of query and key: d_query = scale * sum of ds * key, d_key = scale * sum of ds * query,
d_value = sum of p * d_output (Dao et al. 2022, arXiv:2205.14135, section B.2). Sums over queries
run over the queries that attend to a key.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.exponential import Exponential
from natc.compiler.te.gather import Gather, Pairwise
from natc.compiler.te.logits import d_logit_of, probability_of
from natc.compiler.te.problem import Problem, stage
from natc.compiler.te.rows import RowGather
from natc.operations import HEADS_LAST
from natc.spec import KernelSpec


class Tensors:
    """The inputs of the gradients."""

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
    """Return the function that computes `delta` (`natc.operations`)."""
    p = Problem(spec, HEADS_LAST, exponential)
    d_output, output = (p.tensor(n, spec.value_dim) for n in ("d_output", "output"))
    d = te.reduce_axis((0, spec.value_dim), "d")
    summed = stage(
        p.site_shape,
        p.site_names,
        lambda *at: te.sum(p.accumulate(d_output(*at, d)) * p.accumulate(output(*at, d)), d),
        "summed",
    )
    result = stage(p.site_shape, p.site_names, lambda *at: summed[at], "output")
    return p.function([d_output, output, result])


def d_query(
    spec: KernelSpec, exponential: Exponential, *, lanes: int | None = None
) -> tirx.PrimFunc:
    """Return the function that computes `d_query` (`natc.operations`); lanes: see `te.rows`."""
    return _of_logits(spec, exponential, from_keys=False, lanes=lanes)


def d_key(
    spec: KernelSpec, exponential: Exponential, *, lanes: int | None = None
) -> tirx.PrimFunc:
    """Return the function that computes `d_key` (`natc.operations`); lanes: see `te.rows`."""
    return _of_logits(spec, exponential, from_keys=True, lanes=lanes)


def _of_logits(
    spec: KernelSpec, exponential: Exponential, *, from_keys: bool, lanes: int | None
) -> tirx.PrimFunc:
    """Return the function that sums ds * key (d_query) or, from keys, ds * query (d_key)."""
    p = Problem(spec, HEADS_LAST, exponential)
    t, g = Tensors(p), _gather(p, from_keys=from_keys, lanes=lanes)
    of_queries, of_keys = (t.query, t.d_output), (t.key, t.value)
    sites, taps = (of_keys, of_queries) if from_keys else (of_queries, of_keys)
    scalar = g.scalar_of_tap if from_keys else g.scalar_of_site
    tap, upstream_tap = (g.tap_vector(tensor) for tensor in taps)
    scores = g.product(g.site_vector(sites[0]), tap, "scores")
    d_weights = g.product(g.site_vector(sites[1]), upstream_tap, "d_weights")
    logit = g.logits(scores, t.rpb)
    d_logit = d_logits(g, logit, scalar(t.lse), d_weights, scalar(t.delta))
    result = g.weighted_sum(g.weights(d_logit), tap, p.scale)
    return p.function([t.query, t.key, t.value, t.rpb, t.d_output, t.lse, t.delta, result])


def d_value(
    spec: KernelSpec, exponential: Exponential, *, lanes: int | None = None
) -> tirx.PrimFunc:
    """Return the function that computes `d_value` (`natc.operations`); lanes: see `te.rows`."""
    p = Problem(spec, HEADS_LAST, exponential)
    t, g = Tensors(p), _gather(p, from_keys=True, lanes=lanes)
    scores = g.product(g.site_vector(t.key), g.tap_vector(t.query), "scores")
    logit, lse = g.logits(scores, t.rpb), g.scalar_of_tap(t.lse)
    probabilities = g.weights(
        lambda site, tap: probability_of(p, logit(site, tap), lse(site, tap))
    )
    result = g.weighted_sum(probabilities, g.tap_vector(t.d_output))
    return p.function([t.query, t.key, t.rpb, t.d_output, t.lse, result])


def _gather(p: Problem, *, from_keys: bool, lanes: int | None) -> Gather:
    if lanes is None:
        return Gather(p, from_keys=from_keys)
    return RowGather(p, from_keys=from_keys, lanes=lanes)


def d_logits(
    g: Gather, logit: Pairwise, lse: Pairwise, d_weights: te.Tensor, delta: Pairwise
) -> Pairwise:
    """Return the gradient of each pair's logit, from the stage `d_weights` of dot products."""

    def value(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
        d_weight = d_weights(*site, *tap)
        return d_logit_of(g.problem, logit(site, tap), lse(site, tap), d_weight, delta(site, tap))

    return value
