"""Fused 2-D neighborhood attention, forward: scores, softmax and weighted sum as stages."""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from natc.spec import KernelSpec
from natc.te.axis import axis_stages
from natc.te.exponential import Exponential, polynomial


def forward(
    spec: KernelSpec,
    *,
    with_lse: bool = False,
    exponential: Exponential = polynomial,
    example: tuple[int, int, int, int] | None = None,
) -> tirx.PrimFunc:
    """Return the unscheduled function of `spec` for any batch, map size, heads and dilation.

    Its parameters, in order: query, key, value [batch, height, width, heads, head_dim] of
    spec.dtype; rpb [heads, 2*K0-1, 2*K1-1] float32 when spec.rpb; output like query; lse
    [batch, height, width, heads] float32 when with_lse, the natural logarithm of the sum of
    exponentials; scale float32; dilation_h, dilation_w int32. Sums are in float32.

    example: (batch, height, width, heads) to be fixed instead, with dilation 1 and the default
    scale; only tensors are parameters then. A search reasons about such a function.

    softmax(scale * query . key + rpb) . value over each query's window (`natc.window`). Raises
    SpecError for a rank other than 2.
    """
    spec.require_compiled_rank()
    taps_h, taps_w = spec.kernel_size
    taps, dim, dtype = taps_h * taps_w, spec.head_dim, spec.dtype
    scalars = [te.var("scale", "float32"), te.var("dilation_h"), te.var("dilation_w")]
    scale, dilation_h, dilation_w = scalars
    queries = tuple(te.var(n) for n in ("batch", "height", "width", "heads"))
    if example is not None:
        scalars, queries, dilation_h, dilation_w = [], example, 1, 1
        scale = tirx.const(dim**-0.5, "float32")
    batch, height, width, heads = queries
    query, key, value = (te.placeholder((*queries, dim), dtype, n) for n in _INPUTS)
    rpb = te.placeholder((heads, 2 * taps_h - 1, 2 * taps_w - 1), "float32", "rpb")
    rows = axis_stages(height, taps_h, dilation_h, "row")
    columns = axis_stages(width, taps_w, dilation_w, "column")

    # An index held in a register: on a GPU it is a quotient of the block's number, which would
    # otherwise be divided again for every tap.
    batch_at = te.compute((batch,), lambda b: b, "batch_index")
    head_at = te.compute((heads,), lambda h: h, "head_index")

    scaled = te.compute(
        query.shape,
        lambda b, i, j, h, d: query[b, i, j, h, d].astype("float32") * scale,
        "query_scaled",
    )

    def at_tap(tensor: te.Tensor, name: str) -> te.Tensor:
        # A stage of its own: a schedule may hold the gathered vector in registers.
        return te.compute(
            (*queries, taps_h, taps_w, dim),
            lambda b, i, j, h, m, n, d: tensor[
                batch_at[b], rows.position[i, m], columns.position[j, n], head_at[h], d
            ],
            name,
        )

    key_tap, value_tap = at_tap(key, "key_tap"), at_tap(value, "value_tap")
    d = te.reduce_axis((0, dim), "d")
    scores = te.compute(
        (*queries, taps_h, taps_w),
        lambda b, i, j, h, m, n: te.sum(
            scaled[b, i, j, h, d] * key_tap[b, i, j, h, m, n, d].astype("float32"), d
        ),
        "scores",
    )

    # One index for all taps from here on: the softmax vectorizes over them.
    def logit(b: tirx.Var, i: tirx.Var, j: tirx.Var, h: tirx.Var, t: tirx.Var) -> Expr:
        m, n = t // taps_w, t % taps_w
        found = scores[b, i, j, h, m, n]
        if spec.rpb:
            found = found + rpb[head_at[h], rows.bias[i] + m, columns.bias[j] + n]
        attended = tirx.And(m < rows.count[i], n < columns.count[j])
        return tirx.Select(attended, found, tirx.const(float("-inf"), "float32"))

    logits = te.compute((*queries, taps), logit, "logits")
    t = te.reduce_axis((0, taps), "t")
    largest = te.compute(queries, lambda b, i, j, h: te.max(logits[b, i, j, h, t], t), "max_logit")
    weights = te.compute(
        (*queries, taps),
        lambda b, i, j, h, t: exponential(logits[b, i, j, h, t] - largest[b, i, j, h]),
        "weights",
    )
    t = te.reduce_axis((0, taps), "t")
    total = te.compute(
        queries, lambda b, i, j, h: te.sum(weights[b, i, j, h, t], t), "sum_weights"
    )

    m, n = te.reduce_axis((0, taps_h), "m"), te.reduce_axis((0, taps_w), "n")
    summed = te.compute(
        query.shape,
        lambda b, i, j, h, d: te.sum(
            weights[b, i, j, h, m * taps_w + n] * value_tap[b, i, j, h, m, n, d].astype("float32"),
            [m, n],
        ),
        "summed",
    )
    # One division a query; multiplying is cheap enough to be done for each channel.
    inverse = te.compute(queries, lambda b, i, j, h: 1.0 / total[b, i, j, h], "inverse_sum")
    normalized = te.compute(
        query.shape,
        lambda b, i, j, h, d: summed[b, i, j, h, d] * inverse[b, i, j, h],
        "normalized",
    )
    output = te.compute(
        query.shape, lambda b, i, j, h, d: normalized[b, i, j, h, d].astype(dtype), "output"
    )

    parameters = [query, key, value] + ([rpb] if spec.rpb else []) + [output]
    if with_lse:
        parameters.append(
            te.compute(
                queries, lambda b, i, j, h: largest[b, i, j, h] + te.log(total[b, i, j, h]), "lse"
            )
        )
    return te.create_prim_func([*parameters, *scalars])


_INPUTS = ("query", "key", "value")
