"""natc.window against a definition in words that shares nothing with its formulas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natc.window import PYTHON, Arithmetic, key_position, queries_of, rpb_index, taps, window


def attended(
    position: int, length: int, kernel_size: int, dilation: int, stride: int, is_causal: bool
) -> list[int]:
    """List the attended positions by searching all runs of members of the query's group."""
    group = [p for p in range(length) if (p - position) % dilation == 0]
    # The queries of a group that share a window: `stride` in a row, the last ones perhaps fewer.
    blocks = [group[i : i + stride] for i in range(0, len(group), stride)]
    (block,) = (b for b in blocks if position in b)
    size = min(kernel_size, len(group))
    runs = [group[i : i + size] for i in range(len(group) - size + 1)]

    if is_causal:
        # The longest run that ends at the last query of the block, cut after the query itself.
        last = group.index(block[-1])
        run = group[: last + 1][-kernel_size:]
        return [p for p in run if p <= position]

    # The member in the middle of a full block leads (right of the middle if there are two).
    leader = group[min(group.index(block[0]) + stride // 2, len(group) - 1)]

    # The most central run: as near as can be to kernel_size // 2 members before the leader.
    def off_center(run: list[int]) -> int:
        before = group.index(leader) - group.index(run[0])
        return abs(before - kernel_size // 2)

    return min(runs, key=off_center)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int, bool]:
    length = draw(st.integers(1, 60))
    kernel_size = draw(st.integers(1, 15))
    dilation = draw(st.integers(1, 9))
    stride = draw(st.integers(1, kernel_size))
    return length, kernel_size, dilation, stride, draw(st.booleans())


@given(axes())
def test_every_query_attends_to_the_defined_keys(axis: tuple[int, int, int, int, bool]) -> None:
    length, kernel_size, dilation, stride, is_causal = axis
    for position in range(length):
        keys = taps(position, length, kernel_size, dilation, stride=stride, is_causal=is_causal)
        assert keys == attended(position, length, kernel_size, dilation, stride, is_causal)


@given(axes())
def test_window_fields_and_bias_index(axis: tuple[int, int, int, int, bool]) -> None:
    length, kernel_size, dilation, stride, is_causal = axis
    for position in range(length):
        at = window(position, length, kernel_size, dilation, stride=stride, is_causal=is_causal)
        assert at.first >= 0
        assert 1 <= at.count <= kernel_size
        assert at.group == position % dilation
        assert at.in_group * dilation + at.group == position
        for tap in range(at.count):
            key = key_position(at, tap, dilation)
            index = rpb_index(at, tap, kernel_size)
            assert 0 <= key < length
            assert 0 <= index <= 2 * kernel_size - 2
            assert index == (key - position) // dilation + kernel_size - 1


@given(axes())
def test_division_only_of_non_negative_values(axis: tuple[int, int, int, int, bool]) -> None:
    def checked(operation):
        def call(a: int, b: int) -> int:
            assert a >= 0 and b >= 1
            return operation(a, b)

        return call

    ops = Arithmetic(checked(PYTHON.floordiv), checked(PYTHON.floormod), min, max)
    length, kernel_size, dilation, stride, is_causal = axis
    for position in range(length):
        arguments = (position, length, kernel_size, dilation)
        flags = {"stride": stride, "is_causal": is_causal}
        assert window(*arguments, **flags, ops=ops) == window(*arguments, **flags)


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((0, 10, 3), {}, [0, 1, 2]),  # shifted at the left border
        ((5, 10, 3), {}, [4, 5, 6]),
        ((9, 10, 3), {}, [7, 8, 9]),
        ((5, 10, 4), {}, [3, 4, 5, 6]),  # even: one more before than after
        ((3, 11, 3, 2), {}, [1, 3, 5]),
        ((9, 11, 3, 2), {}, [5, 7, 9]),
        ((2, 4, 7), {}, [0, 1, 2, 3]),  # the whole axis
        ((4, 9, 7, 3), {}, [1, 4, 7]),  # the whole dilation group
        ((5, 20, 3, 9), {}, [5, 14]),
        ((1, 20, 5), {"is_causal": True}, [0, 1]),
        ((9, 20, 5), {"is_causal": True}, [5, 6, 7, 8, 9]),
        ((5, 12, 3), {"stride": 3}, [3, 4, 5]),  # stride == kernel_size: blocks
        ((3, 12, 3), {"stride": 3}, [3, 4, 5]),
    ],
)
def test_examples(arguments: tuple[int, ...], options: dict, expected: list[int]) -> None:
    assert taps(*arguments, **options) == expected


def test_dilation_1_needs_no_division() -> None:
    def never(a: int, b: int) -> int:
        raise AssertionError("a division that costs every kernel without dilation")

    ops = Arithmetic(never, never, min, max)
    assert window(5, 10, 3, ops=ops) == window(5, 10, 3)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_queries_of_a_key_are_those_whose_window_holds_it(dilation: int, is_causal: bool) -> None:
    for kernel_size in (1, 2, 3, 4, 5, 7, 8):
        for stride in range(1, kernel_size + 1):
            for length in (1, 2, 3, 5, 8, 11, 14, 17, 24, 31):
                options: dict[str, Any] = {"stride": stride, "is_causal": is_causal}
                attending: dict[int, list[int]] = {key: [] for key in range(length)}
                for query in range(length):
                    for key in taps(query, length, kernel_size, dilation, **options):
                        attending[key].append(query)
                for key, queries in attending.items():
                    span = queries_of(key, length, kernel_size, dilation, **options)
                    members = range(span.first, span.first + span.count)
                    assert [m * dilation + span.group for m in members] == queries
                    assert span.in_group == key // dilation
                    assert span.count < max(2 * kernel_size, 2)


@pytest.mark.parametrize("is_causal", [False, True])
def test_conditions_may_be_data(is_causal: bool) -> None:
    # A compiler's flags and strides are not constants: `where` chooses, both ways are computed.
    chosen = Arithmetic(
        PYTHON.floordiv, PYTHON.floormod, min, max, lambda flag, a, b: a if flag.value else b
    )

    class Flag:
        value = is_causal

    for length in range(1, 12):
        for position in range(length):
            axis = (position, length, 4, 2)
            fields = window(*axis, stride=2, is_causal=Flag(), ops=chosen)
            assert fields == window(*axis, stride=2, is_causal=is_causal)
