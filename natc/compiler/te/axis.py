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


def axes_of(problem: Problem, *, from_keys: bool) -> list[Axis]:
    """Return each axis; its sites are queries, or keys.

    The stages of axis 0 are key_0 (query_0 if sites are keys), first_0, count_0 and bias_0.
    """
    return [_axis(problem, axis, from_keys) for axis in range(problem.rank)]


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


def window_at(problem: Problem, axis: int, query: Expr) -> window.Window:
    """Return the window of the query at position `query` of an axis."""
    return _members(window.window, problem, axis, query)


def _members(formula: Callable[..., Any], problem: Problem, axis: int, position: Expr) -> Any:
    """Return `window.window` or `window.queries_of` of a position of an axis."""
    flag = problem.is_causal[axis]
    return formula(
        position,
        problem.sizes[axis],
        problem.spec.kernel_size[axis],
        problem.dilation[axis],
        stride=problem.stride[axis],
        is_causal=flag if isinstance(flag, bool) else flag > 0,
        ops=TENSOR_EXPRESSION,
    )


def _axis(problem: Problem, axis: int, from_keys: bool) -> Axis:
    """Return an axis. Divisions happen once for each position, not for each tap."""
    shape, dilation = (problem.sizes[axis],), problem.dilation[axis]
    last = problem.spec.kernel_size[axis] - 1
    formula = window.queries_of if from_keys else window.window

    def at(site: Expr) -> Any:
        return _members(formula, problem, axis, site)

    def offset_of_first(i: tirx.Var) -> Expr:
        in_group = at(i).in_group
        return in_group - first[i] + last if from_keys else first[i] - in_group + last

    def position(i: tirx.Var, tap: tirx.Var) -> Expr:
        # A tap without a pair is masked later, but must still read a valid position.
        return (first[i] + te.min(tap, count[i] - 1)) * dilation + at(i).group

    def offset(i: Expr, t: Expr) -> Expr:
        # From a key, offsets descend, and a tap without a query must still read a valid element.
        # From a query every offset is valid: a group that lacks keys is shorter than the window.
        return te.max(bias[i] - t, 0) if from_keys else bias[i] + t

    first = stage(shape, ["i"], lambda i: at(i).first, f"first_{axis}")
    count = stage(shape, ["i"], lambda i: at(i).count, f"count_{axis}")
    bias = stage(shape, ["i"], offset_of_first, f"bias_{axis}")
    taps, name = (2 * last + 1, "query") if from_keys else (last + 1, "key")
    return Axis(
        taps,
        stage((*shape, taps), ["i", "t"], position, f"{name}_{axis}"),
        lambda i, t: t < count[i],
        offset,
    )
