"""The logit of a query and a key, its probability and its gradient: the formulas of every kernel.

Definitions differ in how they enumerate pairs and in the order of sums. The contribution of a pair
is defined here, once.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.te.problem import Problem


def logit_of(p: Problem, score: Expr, bias: Expr | None, *, is_scaled: bool = False) -> Expr:
    """Return scale * score + bias.

    score: the dot product of query and key; is_scaled: it has the factor `scale` already.
    bias: the pair's entry of the relative positional bias, None for a kernel without one.
    """
    scaled = score if is_scaled else score * p.scale
    return scaled if bias is None else scaled + bias


def probability_of(p: Problem, logit: Expr, lse: Expr) -> Expr:
    """Return exp(logit - lse), the pair's probability, as gradients recompute it.

    The recomputed logit may differ from the forward's in its last bit and so exceed lse; the
    exponential of the difference of two huge numbers would then be huge, hence the minimum with 0.
    If lse is inf the probability is NaN, as inf - inf is. (inf is found by comparison, because the
    compiler folds the difference of two equal expressions to 0.)
    """
    infinite = lse == p.const(math.inf)
    exponent = logit - tirx.Select(infinite, p.const(math.nan), lse)
    return p.exp(tirx.Select(exponent > p.const(0.0), p.const(0.0), exponent))


def d_logit_of(p: Problem, logit: Expr, lse: Expr, d_probability: Expr, delta: Expr) -> Expr:
    """Return the gradient of scale * score + bias: probability * (d_probability - delta).

    d_probability: the dot product of d_output and the key's value. delta: the query's sum of
    d_output * output over channels, less the gradient of its lse.
    """
    return probability_of(p, logit, lse) * (d_probability - delta)
