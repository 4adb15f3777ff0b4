"""Which keys a query attends to along one axis of a neighborhood.

Axes are independent, so a 2-D or 3-D neighborhood is the product of one window per axis.

With dilation d, the positions 0 .. length-1 of an axis fall into d groups: position = index * d +
group. A query attends only within its own group, to `count` consecutive members that start at
member `first`. At a border the window shifts inwards and keeps its size; it has fewer members
than kernel_size only where the group itself is shorter, or on a causal axis.

The same code serves Python integers, arrays and compiler expressions: it uses +, -, * and takes
every other operation from an `Arithmetic`. Division and remainder are only ever applied to
non-negative values, so an `Arithmetic` may truncate instead of rounding down.
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


PYTHON = Arithmetic(operator.floordiv, operator.mod, min, max)


class Window(NamedTuple):
    """The keys of one query on one axis: members first .. first+count-1 of its dilation group."""

    first: Integer  # member of the group that tap 0 reads, >= 0
    count: Integer  # taps attended, 1 .. kernel_size; tap t is attended if and only if t < count
    group: Integer  # dilation group of the query, 0 .. dilation-1
    in_group: Integer  # which member of its group the query itself is


def group_of(position: Integer, dilation: Integer, *, ops: Arithmetic = PYTHON) -> Integer:
    """Return the dilation group of a position, 0 .. dilation-1.

    Args:
        position: index on the axis, >= 0.
        dilation: distance between neighbors, >= 1.
        ops: the operations of the operands' world.
    """
    if _is_one(dilation):
        return 0
    return ops.floormod(position, dilation)


def window(
    position: Integer,
    length: Integer,
    kernel_size: int,
    dilation: Integer = 1,
    *,
    stride: int = 1,
    is_causal: bool = False,
    ops: Arithmetic = PYTHON,
) -> Window:
    """Return the window of the query at `position` on an axis of `length` positions.

    The formulas are those of NATTEN (Hassani et al. 2022, arXiv:2204.07143; dilation 2209.15001;
    stride 2504.16922), except that kernel_size * dilation may exceed the length: then a query
    attends to its whole dilation group, or on a causal axis to the part up to itself.

    Args:
        position: index of the query, 0 <= position < length.
        length: positions on the axis, >= 1.
        kernel_size: largest number of keys, >= 1.
        dilation: distance between neighbors, >= 1.
        stride: queries in groups of this size share a window, 1 <= stride <= kernel_size.
        is_causal: a query attends to no key after itself.
        ops: the operations of position's, length's and dilation's world.
    """
    if _is_one(dilation):
        group: Integer = 0
        in_group, group_length = position, length
    else:
        group = group_of(position, dilation, ops=ops)
        in_group = ops.floordiv(position, dilation)
        group_length = ops.floordiv(length - 1 - group, dilation) + 1

    leader = in_group  # the member that places the window
    if stride > 1:
        ahead = stride - 1 if is_causal else stride // 2
        leader = ops.floordiv(in_group, stride) * stride + ahead
        leader = ops.minimum(leader, group_length - 1)

    if is_causal:
        first = ops.maximum(leader - (kernel_size - 1), 0)
        count = in_group - first + 1
    else:
        first = ops.minimum(leader - kernel_size // 2, group_length - kernel_size)
        first = ops.maximum(first, 0)  # after the minimum: a short group starts at its member 0
        count = ops.minimum(group_length, kernel_size)
    return Window(first, count, group, in_group)


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
    found = window(position, length, kernel_size, dilation, stride=stride, is_causal=is_causal)
    return [key_position(found, tap, dilation) for tap in range(found.count)]


def _is_one(dilation: Integer) -> bool:
    # Comparing a compiler's expression with == builds another expression, hence the type check.
    return isinstance(dilation, int) and dilation == 1
