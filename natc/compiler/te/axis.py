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

# `natc.window` divides non-negative numbers only, so truncated division is right, and cheaper than
# floor division, which corrects the quotient of negative numbers.
TENSOR_EXPRESSION = window.Arithmetic(
    tirx.truncdiv, tirx.truncmod, te.min, te.max, lambda flag, a, b: tirx.Select(flag, a, b)
)


@dataclass(frozen=True)
class Axis:
    """The taps of one axis, as functions of the site's position i.

    taps: the largest number of taps of a site.
    position [length, taps]: the position that tap t of site i reads; always on the axis.
    attended(i, t): whether tap t of site i has a key (or, if sites are keys, a query).
    offset(i, t): the tap's index into the axis of the relative positional bias.
    """

    taps: int
    position: te.Tensor
    attended: Callable[[Expr, Expr], Expr]
    offset: Callable[[Expr, Expr], Expr]


def window_at(problem: Problem, axis: int, query: Expr) -> window.Window:
    """Return the window of the query at position `query` of an axis."""
    return window.window(query, *_arguments(problem, axis), **_options(problem, axis))


def query_axes(problem: Problem) -> list[Axis]:
    """Return each axis with queries as sites: stages key_, first_, count_ and bias_."""
    return [_query_axis(problem, axis) for axis in range(problem.rank)]


def key_axes(problem: Problem) -> list[Axis]:
    """Return each axis with keys as sites: stages query_, first_, count_ and bias_."""
    return [_key_axis(problem, axis) for axis in range(problem.rank)]


def skippable(problem: Problem, axes: list[Axis]) -> list[Axis]:
    """Return the axes with `attended` as a table, by which a space can skip taps."""
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

    # A tap without a key has a valid offset too, since its group is shorter than the window.
    return _axis(problem, axis, at, kernel_size, "key", bias, lambda low, t: low + t)


def _key_axis(problem: Problem, axis: int) -> Axis:
    kernel_size = problem.spec.kernel_size[axis]

    def at(key: Expr) -> window.QueryRange:
        return window.queries_of(key, *_arguments(problem, axis), **_options(problem, axis))

    def bias(first: Expr, in_group: Expr) -> Expr:
        return in_group - first + (kernel_size - 1)

    # A tap without a query must still read a valid element.
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
    """Return an axis from its stages first_, count_, bias_ [length] and `name`_ [length, taps].

    at: returns the range of members that a position's taps read. bias_of, offset: see
    `_query_axis` and `_key_axis`. Divisions happen once for each position, not for each tap.
    """
    shape, dilation = (problem.sizes[axis],), problem.dilation[axis]
    first = stage(shape, ["i"], lambda i: at(i).first, f"first_{axis}")
    count = stage(shape, ["i"], lambda i: at(i).count, f"count_{axis}")
    bias = stage(shape, ["i"], lambda i: bias_of(first[i], at(i).in_group), f"bias_{axis}")

    def position(i: tirx.Var, tap: tirx.Var) -> Expr:
        # A tap without a pair is masked later, but must still read a valid position.
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
