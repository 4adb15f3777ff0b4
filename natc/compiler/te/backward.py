"""Gradients of fused neighborhood attention, recomputed from query, key and the logsumexp.

With p = exp(scale * query . key + rpb - lse - correction) and
ds = p * (d_output . value - delta), over the pairs of query and key: d_query = scale * sum of
ds * key, d_key = scale * sum of ds * query, d_value = sum of p * d_output (Dao et al. 2022,
arXiv:2205.14135, section B.2). Sums over queries run over the queries that attend to a key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.exponential import Exponential
from natc.compiler.te.gather import Gather, Pairwise
from natc.compiler.te.logits import (
    Normalizer,
    d_logit_of,
    exponent_of,
    needs_correction,
    probability_of,
)
from natc.compiler.te.problem import Problem, stage
from natc.compiler.te.rows import RowGather
from natc.compiler.te.streamed import largest_and_sum
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
        self.correction = p.tensor("correction", dtype=spec.accumulator)
        self.delta = p.tensor("delta", dtype=spec.accumulator)

    def of_pairs(self) -> list[te.Tensor | None]:
        """Return the inputs of an operation that needs the gradient of each pair's logit."""
        return [
            self.query, self.key, self.value, self.rpb, self.d_output, self.lse, self.correction,
            self.delta,
        ]  # fmt: skip


def delta(
    spec: KernelSpec, exponential: Exponential, *, lanes: int | None = None
) -> tirx.PrimFunc:
    """Return the function that computes `delta` (`natc.operations`); lanes: see `te.rows`.

    The correction is the logarithm of the sum of exp(logit - lse) over a query's window, from the
    logits that gradients compute. For most queries it is 0 but for rounding: they have 0 in the
    stage `corrected`, by which a space skips the pass over the window.
    """
    p = Problem(spec, HEADS_LAST, exponential)
    query, key = p.tensor("query", spec.head_dim), p.kv_tensor("key", spec.head_dim)
    rpb = p.bias() if spec.rpb else None
    # Not `output`, as the stage of the result is called.
    d_output, output = (p.tensor(n, spec.value_dim) for n in ("d_output", "attention"))
    lse = p.tensor("lse", dtype=spec.accumulator)
    d = te.reduce_axis((0, spec.value_dim), "d")
    summed = stage(
        p.site_shape,
        p.site_names,
        lambda *at: te.sum(p.accumulate(d_output(*at, d)) * p.accumulate(output(*at, d)), d),
        "summed",
    )
    result = stage(p.site_shape, p.site_names, lambda *at: summed[at], "output")

    g = _gather(p, from_keys=False, lanes=lanes, in_place=True)
    d = te.reduce_axis((0, spec.head_dim), "d")

    def term(*at: tirx.Var) -> Expr:
        batch, positions, head = p.parts(at)
        own_key = key(*p.order(batch, positions, tirx.truncdiv(head, p.group)), d)
        return tirx.abs(p.accumulate(query(*at, d)) * p.accumulate(own_key))

    terms = stage(p.site_shape, p.site_names, lambda *at: te.sum(term(*at), d), "terms")
    corrected = stage(
        p.site_shape,
        p.site_names,
        lambda *at: needs_correction(p, lse[at], terms[at] * tirx.abs(p.scale)).astype("int32"),
        "corrected",
    )
    scores = g.product(g.site_vector(query), g.tap_vector(key), "scores")
    logit = g.logits(scores, rpb)
    exponents = g.weights(
        lambda site, tap: exponent_of(p, logit(site, tap), lse[tuple(site)]), fill=-math.inf
    )
    largest, total = largest_and_sum(p, exponents)
    correction = stage(
        p.site_shape,
        p.site_names,
        lambda *at: tirx.if_then_else(
            corrected[at] > 0, largest[at] + te.log(total[at]), p.const(0.0)
        ),
        "correction",
    )
    return p.function([query, key, rpb, d_output, output, lse, result, correction])


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
    d_logit = d_logits(g, logit, (scalar(t.lse), scalar(t.correction)), d_weights, scalar(t.delta))
    result = g.weighted_sum(g.weights(d_logit), tap, p.scale)
    return p.function([*t.of_pairs(), result])


def d_value(
    spec: KernelSpec, exponential: Exponential, *, lanes: int | None = None
) -> tirx.PrimFunc:
    """Return the function that computes `d_value` (`natc.operations`); lanes: see `te.rows`."""
    p = Problem(spec, HEADS_LAST, exponential)
    t, g = Tensors(p), _gather(p, from_keys=True, lanes=lanes)
    scores = g.product(g.site_vector(t.key), g.tap_vector(t.query), "scores")
    logit = g.logits(scores, t.rpb)
    lse, correction = g.scalar_of_tap(t.lse), g.scalar_of_tap(t.correction)
    probabilities = g.weights(
        lambda *pair: probability_of(p, logit(*pair), Normalizer(lse(*pair), correction(*pair)))
    )
    result = g.weighted_sum(probabilities, g.tap_vector(t.d_output))
    return p.function([t.query, t.key, t.rpb, t.d_output, t.lse, t.correction, result])


def _gather(p: Problem, *, from_keys: bool, lanes: int | None, in_place: bool = False) -> Gather:
    """Return the sites and taps; in_place: read without copies, and without tables for skips."""
    if lanes is None:
        return Gather(p, from_keys=from_keys, tables=not in_place)
    options = {"tables": not in_place, "copies": not in_place}
    return RowGather(p, from_keys=from_keys, lanes=lanes, **options)


def d_logits(
    g: Gather,
    logit: Pairwise,
    normalizer: tuple[Pairwise, Pairwise],
    d_weights: te.Tensor,
    delta: Pairwise,
) -> Pairwise:
    """Return the gradient of each pair's logit, from the stage `d_weights` of dot products.

    normalizer: lse and correction of each pair's query.
    """
    lse, correction = normalizer

    def value(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
        of_query = Normalizer(lse(site, tap), correction(site, tap))
        d_weight = d_weights(*site, *tap)
        return d_logit_of(g.problem, logit(site, tap), of_query, d_weight, delta(site, tap))

    return value
