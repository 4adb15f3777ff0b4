"""The window of one axis as tensor-expression stages, from the formulas of `natc.window`.

Windows become small integer tables, computed once per row or column, so that the loops over taps
read positions instead of computing them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from natc import window
from natc.compiler.te.problem import Problem, stage

# Every division in `natc.window` is of non-negative numbers: truncated division spares the
# generated code the correction that rounding down needs for negative ones.
TENSOR_EXPRESSION = window.Arithmetic(
    tirx.truncdiv, tirx.truncmod, te.min, te.max, lambda flag, a, b: tirx.Select(flag, a, b)
)


@dataclass(frozen=True)
class Axis:
    """The taps of one axis, seen from the positions i of its sites.

    taps: how many there are at most.
    position [length, taps]: where tap t of site i reads, always on the axis.
    attended(i, t): whether it does read there: tap t has a key (or, from a key, a query).
    offset(i, t): its index into the relative positional bias of the axis.
    """

    taps: int
    position: te.Tensor
    attended: Callable[[Expr, Expr], Expr]
    offset: Callable[[Expr, Expr], Expr]


def window_at(problem: Problem, axis: int, query: Expr) -> window.Window:
    """Return the window of the query at a position of an axis."""
    return window.window(query, *_arguments(problem, axis), **_options(problem, axis))


def query_axes(problem: Problem) -> list[Axis]:
    """Return what queries attend to: stages key_, first_, count_ and bias_ of each axis."""
    return [_query_axis(problem, axis) for axis in range(problem.rank)]


def key_axes(problem: Problem) -> list[Axis]:
    """Return who attends to keys: stages query_, first_, count_ and bias_ of each axis."""
    return [_key_axis(problem, axis) for axis in range(problem.rank)]


def skippable(problem: Problem, axes: list[Axis]) -> list[Axis]:
    """Return the axes with `attended` as a table, which a space may use to skip taps."""
    return [_with_table(problem, number, axis) for number, axis in enumerate(axes)]


def _with_table(problem: Problem, number: int, axis: Axis) -> Axis:
    table = stage(
        (problem.sizes[number], axis.taps),
        ["i", "t"],
        lambda i, t: axis.attended(i, t).astype("int32"),
        f"attended_{number}",
    )
    return replace(axis, attended=lambda i, t: table[i, t] > 0)


def _query_axis(problem: Problem, axis: int) -> Axis:
    kernel_size = problem.spec.kernel_size[axis]

    def at(query: Expr) -> window.Window:
        return window_at(problem, axis, query)

    def bias(first: Expr, in_group: Expr) -> Expr:
        return first - in_group + (kernel_size - 1)

    # Offsets of taps without a key are in bounds too: such a group begins within the window.
    return _axis(problem, axis, at, kernel_size, "key", bias, lambda low, t: low + t)


def _key_axis(problem: Problem, axis: int) -> Axis:
    kernel_size = problem.spec.kernel_size[axis]

    def at(key: Expr) -> window.QueryRange:
        return window.queries_of(key, *_arguments(problem, axis), **_options(problem, axis))

    def bias(first: Expr, in_group: Expr) -> Expr:
        return in_group - first + (kernel_size - 1)

    # A tap that nothing attends through must still read memory we own.
    return _axis(
        problem, axis, at, 2 * kernel_size - 1, "query", bias, lambda high, t: te.max(high - t, 0)
    )


def _axis(
    problem: Problem,
    axis: int,
    at: Callable[[Expr], window.Window | window.QueryRange],
    taps: int,
    name: str,
    bias_of: Callable[[Expr, Expr], Expr],
    offset: Callable[[Expr, Expr], Expr],
) -> Axis:
    """Return the stages of a range of taps: first_, count_, bias_ [length], name_ [length, taps].

    What needs divisions is computed once for each position, not for each tap.
    """
    shape, dilation = (problem.sizes[axis],), problem.dilation[axis]
    first = stage(shape, ["i"], lambda i: at(i).first, f"first_{axis}")
    count = stage(shape, ["i"], lambda i: at(i).count, f"count_{axis}")
    bias = stage(shape, ["i"], lambda i: bias_of(first[i], at(i).in_group), f"bias_{axis}")

    def position(i: tirx.Var, tap: tirx.Var) -> Expr:
        # A tap without a pair is masked later; it must still read memory we own.
        return (first[i] + te.min(tap, count[i] - 1)) * dilation + at(i).group

    return Axis(
        taps,
        stage((*shape, taps), ["i", "t"], position, f"{name}_{axis}"),
        lambda i, t: t < count[i],
        lambda i, t: offset(bias[i], t),
    )


def _arguments(problem: Problem, axis: int) -> tuple[Expr, int, Expr]:
    return problem.sizes[axis], problem.spec.kernel_size[axis], problem.dilation[axis]


def _options(problem: Problem, axis: int) -> dict[str, Any]:
    flag = problem.is_causal[axis]
    return {
        "stride": problem.stride[axis],
        "is_causal": flag if isinstance(flag, bool) else flag > 0,
        "ops": TENSOR_EXPRESSION,
    }
