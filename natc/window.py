"""Which keys a query attends to along one axis of a neighborhood.

Axes are independent, so a 2-D or 3-D neighborhood is the product of one window per axis.

With dilation d, the positions 0 .. length-1 of an axis fall into d groups: position = index * d +
group. A query attends only within its own group, to `count` consecutive members that start at
member `first`. At a border the window shifts inwards and keeps its size; it has fewer members
than kernel_size only where the group itself is shorter, or on a causal axis.

The same code serves Python integers, arrays and compiler expressions: it uses +, -, * and takes
every other operation from an `Arithmetic`. Division and remainder are only ever applied to
non-negative values, so an `Arithmetic` may truncate instead of rounding down.

Seen from a key, the queries that attend to it are consecutive members of its group as well:
`queries_of` gives their range, which is what gradients of keys and values gather over.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

# An int, an integer array, or an integer expression of a compiler.
Integer = Any


@dataclass(frozen=True)
class Arithmetic:
    """The integer operations of one world; each takes two operands, either may be an int."""

    floordiv: Callable[[Integer, Integer], Integer]
    floormod: Callable[[Integer, Integer], Integer]
    minimum: Callable[[Integer, Integer], Integer]
    maximum: Callable[[Integer, Integer], Integer]
    # where(flag, a, b) is a where flag is true: needed where flags or strides are not constants.
    where: Callable[[Any, Integer, Integer], Integer] = lambda flag, a, b: a if flag else b


PYTHON = Arithmetic(operator.floordiv, operator.mod, min, max)


class Window(NamedTuple):
    """The keys of one query on one axis: members first .. first+count-1 of its dilation group."""

    first: Integer  # member of the group that tap 0 reads, >= 0
    count: Integer  # taps attended, 1 .. kernel_size; tap t is attended if and only if t < count
    group: Integer  # dilation group of the query, 0 .. dilation-1
    in_group: Integer  # which member of its group the query itself is


class QueryRange(NamedTuple):
    """The queries that attend to one key on one axis: members first .. first+count-1."""

    first: Integer
    count: Integer  # >= 1: a key is always attended by the query at its own position
    group: Integer  # dilation group of the key and of its queries
    in_group: Integer  # which member of its group the key is


def window(
    position: Integer,
    length: Integer,
    kernel_size: int,
    dilation: Integer = 1,
    *,
    stride: Integer = 1,
    is_causal: Any = False,
    ops: Arithmetic = PYTHON,
) -> Window:
    """Return the window of the query at `position` on an axis of `length` positions.

    The formulas are NATTEN's (Hassani et al. 2022, arXiv:2204.07143; dilation 2209.15001;
    stride 2504.16922), except that kernel_size * dilation may exceed the length: then a query
    attends to its whole dilation group, or on a causal axis to the part up to itself.

    Args:
        position: index of the query, 0 <= position < length.
        length: positions on the axis, >= 1.
        kernel_size: largest number of keys, >= 1.
        dilation: distance between neighbors, >= 1.
        stride: queries in groups of this size share a window, 1 <= stride <= kernel_size.
        is_causal: a query attends to no key after itself; a bool, or a condition for ops.where.
        ops: the operations of position's, length's, dilation's and stride's world.
    """
    in_group, group, group_length = _member(position, length, dilation, ops)

    def causal() -> tuple[Integer, Integer]:
        leader = _leader(in_group, group_length, stride, stride - 1, ops)
        first = ops.maximum(leader - (kernel_size - 1), 0)
        return first, in_group - first + 1

    def centered() -> tuple[Integer, Integer]:
        leader = _leader(in_group, group_length, stride, _half(stride, ops), ops)
        first = ops.minimum(leader - kernel_size // 2, group_length - kernel_size)
        # After the minimum: a short group starts at its member 0.
        return ops.maximum(first, 0), ops.minimum(group_length, kernel_size)

    first, count = _either(is_causal, causal, centered, ops)
    return Window(first, count, group, in_group)


def queries_of(
    position: Integer,
    length: Integer,
    kernel_size: int,
    dilation: Integer = 1,
    *,
    stride: Integer = 1,
    is_causal: Any = False,
    ops: Arithmetic = PYTHON,
) -> QueryRange:
    """Return which queries attend to the key at `position`; arguments as for `window`.

    `window` places windows in the order of their queries, so these are consecutive members of
    the group, at most 2 * kernel_size - 1: from the first whose window ends at the key or later,
    up to the last whose window begins at the key or earlier.
    """
    in_group, group, group_length = _member(position, length, dilation, ops)

    def up_to(leader_ahead: Integer, latest: Integer, always: Any) -> Integer:
        # Members below this have their leader at `latest` or before.
        end = (ops.floordiv(latest - leader_ahead, stride) + 1) * stride
        return ops.where(always, group_length, ops.minimum(end, group_length))

    def causal() -> tuple[Integer, Integer]:
        latest = in_group + (kernel_size - 1)
        return in_group, up_to(stride - 1, latest, latest >= group_length - 1)

    def centered() -> tuple[Integer, Integer]:
        radius, ahead = kernel_size // 2, _half(stride, ops)
        # Windows that begin at `earliest` or later reach the key; at 0 or below, all do.
        earliest = ops.maximum(in_group - (kernel_size - 1), 0)
        tiles = ops.floordiv(earliest + radius - ahead + stride - 1, stride)
        first = ops.where(earliest > 0, tiles * stride, 0)
        # No window begins after group_length - kernel_size.
        return first, up_to(ahead, in_group + radius, in_group >= group_length - kernel_size)

    first, end = _either(is_causal, causal, centered, ops)
    return QueryRange(first, end - first, group, in_group)


def _member(
    position: Integer, length: Integer, dilation: Integer, ops: Arithmetic
) -> tuple[Integer, Integer, Integer]:
    """Return which member of its dilation group a position is, the group, and its length."""
    if _is_one(dilation):
        return position, 0, length
    group = ops.floormod(position, dilation)
    return ops.floordiv(position, dilation), group, ops.floordiv(length - 1 - group, dilation) + 1


def _leader(
    in_group: Integer, group_length: Integer, stride: Integer, ahead: Integer, ops: Arithmetic
) -> Integer:
    """Return the member whose own window `stride` adjacent members share."""
    if _is_one(stride):
        return in_group
    return ops.minimum(ops.floordiv(in_group, stride) * stride + ahead, group_length - 1)


def _half(stride: Integer, ops: Arithmetic) -> Integer:
    return 0 if _is_one(stride) else ops.floordiv(stride, 2)


def _either(
    flag: Any,
    causal: Callable[[], tuple[Integer, Integer]],
    centered: Callable[[], tuple[Integer, Integer]],
    ops: Arithmetic,
) -> tuple[Integer, Integer]:
    if isinstance(flag, bool):
        return causal() if flag else centered()
    (first, second), (centered_first, centered_second) = causal(), centered()
    return ops.where(flag, first, centered_first), ops.where(flag, second, centered_second)


def key_position(window: Window, tap: Integer, dilation: Integer) -> Integer:
    """Return the position that tap `tap` reads; an attended tap (tap < count) is on the axis."""
    if _is_one(dilation):
        return window.first + tap
    return (window.first + tap) * dilation + window.group


def rpb_index(window: Window, tap: Integer, kernel_size: int) -> Integer:
    """Return the index into a relative position bias of 2*kernel_size-1 entries for tap `tap`.

    It is the offset from the query to the key, counted in members of the group, plus
    kernel_size-1; for an attended tap it lies in 0 .. 2*kernel_size-2.
    """
    return window.first + tap - window.in_group + (kernel_size - 1)


def taps(
    position: int,
    length: int,
    kernel_size: int,
    dilation: int = 1,
    *,
    stride: int = 1,
    is_causal: bool = False,
) -> list[int]:
    """List the positions that a query attends to, ascending; arguments as for `window`."""
    keys = window(position, length, kernel_size, dilation, stride=stride, is_causal=is_causal)
    return [key_position(keys, tap, dilation) for tap in range(keys.count)]


def _is_one(number: Integer) -> bool:
    # Comparing a compiler's expression with == builds another expression, hence the type check.
    return isinstance(number, int) and number == 1
