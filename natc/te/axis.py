"""The window of one axis as tensor-expression stages, from the formulas of `natc.window`.

Windows become small integer tables, computed once per row or column, so that the loops over taps
read positions instead of computing them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr

from natc import window
from natc.te.problem import Problem, stage

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
    """Return what queries attend to: stages key_, count_ and bias_ with the axis's number."""
    return [_query_axis(problem, axis) for axis in range(problem.rank)]


def key_axes(problem: Problem) -> list[Axis]:
    """Return who attends to keys: stages query_, attended_ and bias_ with the axis's number."""
    return [_key_axis(problem, axis) for axis in range(problem.rank)]


def skippable(problem: Problem, axes: list[Axis]) -> list[Axis]:
    """Return the axes with `attended` as a table, which a space may use to skip taps."""
    found = []
    for number, axis in enumerate(axes):
        table = stage(
            (problem.sizes[number], axis.taps),
            ["i", "t"],
            lambda i, t, axis=axis: axis.attended(i, t).astype("int32"),
            f"attended_{number}",
        )
        found.append(
            Axis(axis.taps, axis.position, lambda i, t, table=table: table[i, t] > 0, axis.offset)
        )
    return found


def _query_axis(problem: Problem, axis: int) -> Axis:
    length, taps = problem.sizes[axis], problem.spec.kernel_size[axis]

    def position(query: tirx.Var, tap: tirx.Var) -> Expr:
        found = window_at(problem, axis, query)
        # A tap without a key is masked later; it must still read memory we own.
        return window.key_position(found, te.min(tap, found.count - 1), problem.dilation[axis])

    def offset(query: tirx.Var) -> Expr:
        return window.rpb_index(window_at(problem, axis, query), 0, taps)

    count = stage((length,), ["i"], lambda i: window_at(problem, axis, i).count, f"count_{axis}")
    bias = stage((length,), ["i"], offset, f"bias_{axis}")
    # Offsets of taps without a key are in bounds too: such a group begins within the window.
    return Axis(
        taps,
        stage((length, taps), ["i", "t"], position, f"key_{axis}"),
        lambda i, t: t < count[i],
        lambda i, t: bias[i] + t,
    )


def _key_axis(problem: Problem, axis: int) -> Axis:
    length, kernel_size = problem.sizes[axis], problem.spec.kernel_size[axis]
    taps = 2 * kernel_size - 1

    def at(key: Expr) -> window.QueryRange:
        return window.queries_of(key, *_arguments(problem, axis), **_options(problem, axis))

    def position(key: tirx.Var, tap: tirx.Var) -> Expr:
        found = at(key)
        member = found.first + te.min(tap, found.count - 1)
        return member * problem.dilation[axis] + found.group

    def offset(key: tirx.Var) -> Expr:
        found = at(key)
        return found.in_group - found.first + (kernel_size - 1)

    count = stage((length,), ["i"], lambda i: at(i).count, f"count_{axis}")
    bias = stage((length,), ["i"], offset, f"bias_{axis}")
    return Axis(
        taps,
        stage((length, taps), ["i", "t"], position, f"query_{axis}"),
        lambda i, t: t < count[i],
        # A tap that nothing attends through must still read memory we own.
        lambda i, t: te.max(bias[i] - t, 0),
    )


def _arguments(problem: Problem, axis: int) -> tuple[Expr, int, Expr]:
    return problem.sizes[axis], problem.spec.kernel_size[axis], problem.dilation[axis]


def _options(problem: Problem, axis: int) -> dict[str, object]:
    flag = problem.is_causal[axis]
    return {
        "stride": problem.stride[axis],
        "is_causal": flag if isinstance(flag, bool) else flag > 0,
        "ops": TENSOR_EXPRESSION,
    }
