"""The logit of a query and a key, its probability and its gradient: the formulas of every kernel.

Definitions differ in how they enumerate pairs and in the order of sums. The contribution of a pair
is defined here, once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.problem import Problem
from natc.operations import EXACT_BELOW

# Below this |t|, 17/315 t^6, the relative error of three terms of tanh's series, is negligible.
_NEAR = {"float32": 0.1, "float64": 1 / 256}


def logit_of(p: Problem, score: Expr, bias: Expr | None, *, is_scaled: bool = False) -> Expr:
    """Return scale * score + bias; if the spec caps logits, softcap * tanh of it / softcap.

    score: the dot product of query and key; is_scaled: it has the factor `scale` already.
    bias: the pair's entry of the relative positional bias, None for a kernel without one.
    """
    logit = score if is_scaled else score * p.scale
    if bias is not None:
        logit = logit + bias
    cap = p.terms.get("softcap")
    if cap is None:
        return logit
    x, t, e = (te.var(name, p.accumulator) for name in ("logit", "t", "e"))
    # tanh |t| = (1 - e) / (1 + e) with e = exp(-2 |t|), which cannot overflow. Near 0, where 1 - e
    # loses digits, three terms of the series are exact to the last bit.
    size = cap * (p.const(1.0) - e) / (p.const(1.0) + e)
    series = x * (p.const(1.0) + t * t * (t * t * p.const(2 / 15) - p.const(1 / 3)))
    near = p.const(_NEAR[p.accumulator])
    capped = tirx.Select(x < p.const(0.0), p.const(0.0) - size, size)
    capped = tirx.Select(tirx.abs(t) < near, series, capped)
    capped = tirx.Let(e, p.exp(tirx.abs(t) * p.const(-2.0)), capped)
    return tirx.Let(x, logit, tirx.Let(t, x / cap, capped))


class Normalizer(NamedTuple):
    """What turns a query's logits into probabilities: see `probability_of`.

    lse: the forward's logsumexp. correction: from the operation `delta`.
    """

    lse: Expr
    correction: Expr


def needs_correction(p: Problem, lse: Expr, terms: Expr) -> Expr:
    """Return whether rounding might be noticed in exp(logit - lse), of an lse that is finite.

    terms: the sum of |query * key| over channels, for one key of the window. An lse may be small
    because large terms cancel; their sum has another rounding error here than in the forward.
    """
    size = tirx.abs(lse)
    is_large = tirx.Or(size >= p.const(EXACT_BELOW), terms >= p.const(EXACT_BELOW))
    return tirx.And(size < p.const(math.inf), is_large)


def exponent_of(p: Problem, logit: Expr, lse: Expr) -> Expr:
    """Return logit - lse, with the same bits in every operation of a target.

    If lse is inf it is NaN, as inf - inf is. (inf is found by comparison, because the compiler
    folds the difference of two equal expressions to 0.)
    """
    infinite = lse == p.const(math.inf)
    return p.as_written(p.as_written(logit) - tirx.Select(infinite, p.const(math.nan), lse))


def probability_of(p: Problem, logit: Expr, of_query: Normalizer) -> Expr:
    """Return exp(logit - lse - correction), the pair's probability, as gradients recompute it.

    Without a correction, a recomputed logit may exceed lse by a rounding error. An exponent above
    0 counts as 0.
    """
    exponent = te.var("exponent", p.accumulator)
    exp = p.exp(tirx.Select(exponent > p.const(0.0), p.const(0.0), exponent))
    return tirx.Let(exponent, exponent_of(p, logit, of_query.lse) - of_query.correction, exp)


def d_logit_of(
    p: Problem, logit: Expr, of_query: Normalizer, d_probability: Expr, delta: Expr
) -> Expr:
    """Return the gradient of scale * score + bias: probability * (d_probability - delta) * slope.

    slope is 1 - tanh^2 of a capped logit, 1 without a cap.

    d_probability: the dot product of d_output and the key's value. delta: the query's sum of
    d_output * output over channels, less the gradient of its lse.
    """
    cap = p.terms.get("softcap")
    if cap is None:
        return probability_of(p, logit, of_query) * (d_probability - delta)
    capped, tanh = te.var("capped", p.accumulator), te.var("tanh", p.accumulator)
    gradient = probability_of(p, capped, of_query) * (d_probability - delta)
    slope = tirx.Let(tanh, capped / cap, p.const(1.0) - tanh * tanh)
    return tirx.Let(capped, logit, gradient * slope)
