"""The helpers of natc.checks and tests.support: a check that cannot fail hides other errors."""

from __future__ import annotations

import math

import pytest
import torch
from support.layouts import misaligned, noncontiguous

from natc.checks.inputs import make_inputs, poisoned
from natc.checks.tolerance import RELATIVE_TOLERANCE, check_close
from natc.errors import CheckError

pytestmark = pytest.mark.quick


def test_inputs_depend_on_the_seed_alone() -> None:
    shape = (2, 4, 5, 3, 8)
    first, same = make_inputs(shape, kernel_size=3), make_inputs(shape, kernel_size=3)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    another = make_inputs(shape, kernel_size=3, seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(first, another, strict=True))
    half = make_inputs(shape, dtype=torch.float16)
    assert torch.equal(half.query, first.query.half())
    assert torch.equal(half.to_float64().query, half.query.double())


def test_shapes_of_inputs() -> None:
    inputs = make_inputs(
        (2, 4, 5, 6, 8), kernel_size=(3, 4), heads_kv=2, value_dim=1, dtype=torch.bfloat16
    )
    assert [tuple(tensor.shape) for tensor in inputs] == [
        (2, 4, 5, 6, 8),
        (2, 4, 5, 2, 8),
        (2, 4, 5, 2, 1),
        (6, 5, 7),
    ]
    assert inputs.rpb.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("alignment", [16, 64])
def test_misaligned_and_noncontiguous_keep_values(dtype, alignment) -> None:
    tensor = make_inputs((1, 4, 2, 8), dtype=dtype, requires_grad=True).query
    shifted = misaligned(tensor, alignment)
    assert torch.equal(shifted, tensor)
    assert shifted.is_contiguous()
    assert shifted.data_ptr() % alignment == tensor.element_size()
    spread = noncontiguous(tensor)
    assert torch.equal(spread, tensor)
    assert not spread.is_contiguous()
    assert all(t.is_leaf and t.requires_grad for t in (shifted, spread))


def test_poisoned_is_nan_everywhere() -> None:
    assert poisoned((3, 2), torch.float16).isnan().all()


@pytest.mark.parametrize("dtype", RELATIVE_TOLERANCE, ids=str)
def test_tolerance_accepts_rounding_and_rejects_more(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(1000, dtype=torch.float64, generator=generator)
    check_close(expected.to(dtype), expected, dtype, "rounded")
    with pytest.raises(CheckError, match="^scaled: relative error"):
        check_close(expected * (1 + 2 * RELATIVE_TOLERANCE[dtype]), expected, dtype, "scaled")


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1.1])
def test_tolerance_sees_one_wrong_element_of_many(wrong) -> None:
    expected = torch.ones(1_000_000, dtype=torch.float64)
    actual = expected.float()
    actual[123] = wrong
    with pytest.raises(CheckError, match="^out: "):
        check_close(actual, expected, torch.bfloat16, "out")


def test_tolerance_wants_equal_infinities_and_shapes() -> None:
    expected = torch.tensor([1.0, -math.inf], dtype=torch.float64)
    check_close(expected.float(), expected, torch.float32, "logits")
    for actual in (torch.tensor([1.0, -9e9]), torch.tensor([1.0, math.inf]), torch.ones(2, 1)):
        with pytest.raises(CheckError, match="^logits: "):
            check_close(actual, expected, torch.float32, "logits")
