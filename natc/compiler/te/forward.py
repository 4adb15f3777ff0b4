"""Fused neighborhood attention, forward: scores, softmax and weighted sum as stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.exponential import Exponential
from natc.compiler.te.gather import Gather, joined_tap, split_tap
from natc.compiler.te.logits import logit_of
from natc.compiler.te.problem import Problem, stage
from natc.operations import HEADS_LAST, OPERATIONS
from natc.spec import KernelSpec


def forward(
    operation: str,
    spec: KernelSpec,
    exponential: Exponential,
    *,
    example: Sequence[int] | None = None,
    columns: int | None = None,
    copies: bool = False,
) -> tirx.PrimFunc:
    """Return the unscheduled function of a forward operation (`natc.operations`).

    It computes softmax(scale * query . key + rpb) . value over each query's window
    (`natc.window`); lse is the natural logarithm of the sum of exponentials.

    example: (batch, *sizes, heads), fixed instead of variable (`te.problem`); a search reasons
    about such a function.

    columns: taps of the last axis including padding: taps without a key behind the window's, for a
    space whose vectors hold that many. copies: whether keys and values are read through stages
    key_copied and value_copied, heads first, which a space may inline.
    """
    p = Problem(spec, HEADS_LAST, exponential, example)
    g = Gather(p, from_keys=False, tables=False)
    inputs, query, key, value = p.attention_inputs(packed=OPERATIONS[operation].packed)
    rpb = p.bias() if spec.rpb else None
    sites, site, n = p.site_shape, p.site_names, len(p.site_names)
    last, channels = spec.kernel_size[-1], spec.value_dim
    columns = columns or last
    window = [*g.window[:-1], columns]
    taps = math.prod(window)
    bias = None if rpb is None else g.bias(_padded(p, rpb, columns - last))
    if copies:
        key, value = p.copied(key), p.copied(value)

    scaled = stage(
        query.shape,
        [*site, "d"],
        lambda *at: p.accumulate(query(*at)) * p.scale,
        "query_scaled",
    )

    key_tap, value_tap = g.tap_vector(key), g.tap_vector(value)
    d = te.reduce_axis((0, spec.head_dim), "d")

    def score(*at: tirx.Var) -> Expr:
        where, tap = at[:n], [*at[n:]]
        if columns > last:
            tap[-1] = te.min(tap[-1], last - 1)
        return te.sum(scaled(*where, d) * p.accumulate(key_tap(*where, *tap, d)), d)

    scores = stage((*sites, *window), [*site, *p.tap_names], score, "scores")

    # One index for all taps from here on: the softmax vectorizes over them.
    def logit(*at: tirx.Var) -> Expr:
        where, tap = at[:n], split_tap(at[n], window)
        pair_bias = None if bias is None else bias(where, tap)
        value = logit_of(p, scores(*where, *tap), pair_bias, is_scaled=True)
        return tirx.Select(g.attended(where, tap), value, p.const(-math.inf))

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

    tap = [te.reduce_axis((0, extent), name) for extent, name in zip(g.window, p.tap_names)]
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
    if OPERATIONS[operation].with_lse:
        lse = stage(sites, site, lambda *at: log_sum(p, largest[at], total[at]), "lse")
    return p.function([*inputs, rpb, output, lse])


def _padded(p: Problem, rpb: te.Tensor, columns: int) -> te.Tensor:
    """Return a stage with the bias and `columns` zeros behind each row; `rpb` itself for 0.

    Vectors of taps read these zeros for the taps that pad a window.
    """
    if not columns:
        return rpb
    heads, *offsets = rpb.shape
    return stage(
        (heads, *offsets[:-1], offsets[-1] + columns),
        ["h", *(f"r{axis}" for axis in range(p.rank))],
        lambda h, *r: tirx.if_then_else(r[-1] < offsets[-1], rpb(h, *r), p.const(0.0)),
        "bias_padded",
    )


def base(p: Problem, largest: Expr) -> Expr:
    """Return the number to subtract from logits before the exponential: the largest logit, or 0.

    0 if the largest logit is -inf. Exponentials of -inf are then 0, and a NaN among the logits,
    which a maximum ignores, still makes the sum NaN.
    """
    return tirx.Select(largest == p.const(-math.inf), p.const(0.0), largest)


def log_sum(p: Problem, largest: Expr, total: Expr) -> Expr:
    """Return the logsumexp from the largest logit and `total`, the sum of exp(logit - base).

    If the largest logit is inf, so is the logsumexp (`total` is NaN then).
    """
    infinite = largest == p.const(math.inf)
    return tirx.Select(infinite, largest, base(p, largest) + te.log(total))
