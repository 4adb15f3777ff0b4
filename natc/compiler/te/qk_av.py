"""The operators of unfused neighborhood attention. Each one's gradients are operators as well."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.axis import window_at
from natc.compiler.te.exponential import Exponential
from natc.compiler.te.gather import Gather, joined_tap, split_tap
from natc.compiler.te.problem import Problem, stage
from natc.operations import HEADS_FIRST
from natc.spec import KernelSpec


def qk(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function that computes `qk` (`natc.operations`)."""
    p = Problem(spec, HEADS_FIRST, exponential)
    g = Gather(p, from_keys=False)
    query, key = p.tensor("query", spec.head_dim), p.kv_tensor("key", spec.head_dim)
    rpb = p.bias() if spec.rpb else None
    fill = te.var("fill", p.accumulator)
    scores = g.product(g.site_vector(query), g.tap_vector(key), "scores")
    logit = g.logits(scores, rpb)

    def element(*at: tirx.Var) -> Expr:
        site, tap = at[:-1], split_tap(at[-1], g.window)
        return p.rounded(tirx.Select(g.attended(site, tap), logit(site, tap), fill))

    shape = (*p.site_shape, math.prod(g.window))
    attn = stage(shape, [*p.site_names, "t"], element, "output")
    return p.function([query, key, rpb, attn], fill)


def av(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function that computes `av` (`natc.operations`)."""
    p = Problem(spec, HEADS_FIRST, exponential)
    g = Gather(p, from_keys=False)
    attn = p.tensor("attn", math.prod(spec.kernel_size))
    value = p.kv_tensor("value", spec.head_dim)
    weights = g.weights(lambda site, tap: p.accumulate(attn(*site, joined_tap(tap, g.window))))
    return p.function([attn, value, g.weighted_sum(weights, g.tap_vector(value))])


def inverse_av(spec: KernelSpec, exponential: Exponential) -> tirx.PrimFunc:
    """Return the function that computes `inverse_av` (`natc.operations`)."""
    p = Problem(spec, HEADS_FIRST, exponential)
    g = Gather(p, from_keys=True)
    attn = p.tensor("attn", math.prod(spec.kernel_size))
    vector = p.tensor("vector", spec.head_dim)
    tap_of_key = [_tap_of_key(p, g, axis) for axis in range(p.rank)]

    def weight(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
        _, positions, _ = p.parts(site)
        taps = [table[i, t] for table, i, t in zip(tap_of_key, positions, tap)]
        joined = joined_tap(taps, spec.kernel_size)
        return p.accumulate(p.read(attn, site, g.positions(site, tap), joined))

    weights = g.weights(weight)
    return p.function([attn, vector, g.weighted_sum(weights, g.tap_vector(vector))])


def _tap_of_key(p: Problem, g: Gather, axis: int) -> te.Tensor:
    """Return the table [key, t] of an axis: which tap of the key's query number t is the key."""

    def tap(key: tirx.Var, number: tirx.Var) -> Expr:
        keys = window_at(p, axis, g.axes[axis].position[key, number])
        member = tirx.truncdiv(key, p.dilation[axis])
        # A query that does not attend to the key must still read a valid element.
        return te.max(te.min(member - keys.first, p.spec.kernel_size[axis] - 1), 0)

    return stage((p.sizes[axis], g.axes[axis].taps), ["i", "t"], tap, f"tap_{axis}")
