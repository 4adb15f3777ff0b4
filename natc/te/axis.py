"""The window of one axis as tensor-expression stages, from the formulas of `natc.window`."""

from __future__ import annotations

from typing import NamedTuple

from tvm import te, tirx
from tvm.ir import Expr

from natc import window

# Every division in `natc.window` is of non-negative numbers: truncated division spares the
# generated code the correction that rounding down needs for negative ones.
TENSOR_EXPRESSION = window.Arithmetic(tirx.truncdiv, tirx.truncmod, te.min, te.max)


class Axis(NamedTuple):
    """Integer stages of one axis of `length` queries and `kernel_size` taps.

    position [length, kernel_size]: where tap t of query i reads, always on the axis.
    count [length]: how many taps of query i are attended, the first ones.
    bias [length]: index into the relative positional bias of tap 0 of query i.
    """

    position: te.Tensor
    count: te.Tensor
    bias: te.Tensor


def axis_stages(length: Expr | int, kernel_size: int, dilation: Expr | int, suffix: str) -> Axis:
    """Return the stages of one axis; their blocks are named key_, count_ and bias_`suffix`."""

    def at(query: tirx.Var) -> window.Window:
        return window.window(query, length, kernel_size, dilation, ops=TENSOR_EXPRESSION)

    def position(query: tirx.Var, tap: tirx.Var) -> Expr:
        found = at(query)
        # A tap past the end of a short group is masked later; it must still read memory we own.
        tap = te.min(tap, found.count - 1)
        return window.key_position(found, tap, dilation)

    return Axis(
        te.compute((length, kernel_size), position, f"key_{suffix}"),
        te.compute((length,), lambda query: at(query).count, f"count_{suffix}"),
        te.compute(
            (length,), lambda query: window.rpb_index(at(query), 0, kernel_size), f"bias_{suffix}"
        ),
    )
