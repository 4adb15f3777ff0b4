"""natc.merge_attentions: attention over a union of keys from attentions over its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import natc
from natc.errors import ArgumentError, ArgumentTypeError


def attention(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Plain attention of logits [..., n] over values [n, d]."""
    return logits.softmax(-1) @ values, logits.logsumexp(-1)


def parts_of(logits: Tensor, values: Tensor, sizes: Sequence[int]) -> tuple[Any, Any]:
    pairs = zip(logits.split(sizes, -1), values.split(sizes), strict=True)
    return tuple(zip(*(attention(*pair) for pair in pairs), strict=True))


def drawn(*keys: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    number = sum(keys)
    return (
        torch.randn(2, 5, number, generator=generator, dtype=torch.float64),
        torch.randn(number, 3, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("sizes", [(4,), (3, 4), (1, 2, 3, 4), (0, 4), (2, 0)], ids=str)
def test_parts_make_the_whole(sizes: tuple[int, ...]) -> None:
    logits, values = drawn(*sizes)
    merged = natc.merge_attentions(*parts_of(logits, values, sizes))
    torch.testing.assert_close(merged, attention(logits, values), rtol=1e-13, atol=1e-13)


def test_scores_may_be_far_apart_and_huge() -> None:
    logits, values = drawn(2, 2)
    logits = logits + torch.tensor([0.0, 1e4, -1e4, 2e4], dtype=torch.float64)
    merged = natc.merge_attentions(*parts_of(logits, values, (2, 2)))
    torch.testing.assert_close(merged, attention(logits, values))


def test_one_part_comes_back_bit_for_bit() -> None:
    output, lse = torch.randn(3, 4), torch.randn(3)
    merged = natc.merge_attentions([output], [lse])
    assert torch.equal(merged[0], output) and torch.equal(merged[1], lse)


def test_derivatives() -> None:
    outputs = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    lses = [torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def merge(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return natc.merge_attentions(tensors[:3], tensors[3:])

    assert torch.autograd.gradcheck(merge, (*outputs, *lses), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(merge, (*outputs, *lses), check_fwd_over_rev=True)


@pytest.mark.parametrize("garbage", [0.0, 7.0, math.nan, math.inf])
def test_parts_with_lse_minus_infinity_are_ignored(garbage: float) -> None:
    output = torch.randn(2, 3, requires_grad=True)
    lse = torch.randn(2, requires_grad=True)
    nothing = torch.full((2, 3), garbage, requires_grad=True)
    no_lse = torch.full((2,), -math.inf, requires_grad=True)
    merged = natc.merge_attentions([nothing, output], [no_lse, lse])
    torch.testing.assert_close(merged, (output, lse), rtol=0, atol=0)
    (merged[0].sum() + merged[1].sum()).backward()
    for tensor, wanted in ((output, 1.0), (lse, 1.0), (nothing, 0.0), (no_lse, 0.0)):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, torch.full_like(tensor, wanted))


def test_all_parts_with_lse_minus_infinity() -> None:
    outputs = [torch.tensor([[7.0], [0.0], [0.0]]), torch.tensor([[3.0], [0.0], [math.nan]])]
    lses = [torch.full((3,), -math.inf, requires_grad=True) for _ in range(2)]
    output, lse = natc.merge_attentions(outputs, lses)
    # A softmax of nothing but -inf is NaN, and stays so.
    assert output[:2].tolist() == [[0.0], [0.0]] and output[2].isnan()
    assert lse.tolist() == [-math.inf] * 3
    (output[:2].sum() + lse.sum()).backward()
    assert lses[0].grad is not None and lses[0].grad[:2].tolist() == [0.0, 0.0]


def test_nan_spreads_and_infinity_is_nan_as_in_a_softmax() -> None:
    for wrong in (math.nan, math.inf):
        output, lse = natc.merge_attentions(
            [torch.ones(2, 1), torch.ones(2, 1)],
            [torch.tensor([wrong, 0.0]), torch.tensor([0.0, 0.0])],
        )
        assert output.isnan().flatten().tolist() == [True, False]
        assert not lse[1].isnan() and not lse[0].isfinite()


@pytest.mark.parametrize(
    ("dtype", "lse_dtype", "merged"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_dtypes(dtype: torch.dtype, lse_dtype: torch.dtype, merged: torch.dtype) -> None:
    logits, values = drawn(3, 4)
    outputs, lses = parts_of(logits, values, (3, 4))
    output, lse = natc.merge_attentions(
        [t.to(dtype) for t in outputs], [t.to(lse_dtype) for t in lses]
    )
    assert (output.dtype, lse.dtype) == (dtype, merged)
    torch.testing.assert_close(output.double(), attention(logits, values)[0], rtol=2e-2, atol=2e-2)


def test_under_vmap_and_compiled() -> None:
    outputs, lses = [torch.randn(4, 2, 3) for _ in range(2)], [torch.randn(4, 2) for _ in range(2)]
    expected = natc.merge_attentions(outputs, lses)
    torch.testing.assert_close(torch.vmap(natc.merge_attentions)(outputs, lses), expected)
    compiled = torch.compile(natc.merge_attentions, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(outputs, lses), expected)


OUT, LSE = torch.zeros(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("outputs", "lses", "error", "message"),
    [
        (
            OUT,
            [LSE],
            ArgumentTypeError,
            "outputs is a Tensor; it must be a list or tuple of tensors",
        ),
        ([OUT], LSE, ArgumentTypeError, "lses is a Tensor"),
        ([], [], ArgumentError, "lses has 0 entries and outputs 0.* one or more"),
        ([OUT, OUT], [LSE], ArgumentError, "lses has 1 entries and outputs 2"),
        ([OUT, None], [LSE, LSE], ArgumentTypeError, r"outputs\[1\] is a NoneType"),
        ([OUT, OUT], [LSE, 1.0], ArgumentTypeError, r"lses\[1\] is a float"),
        ([None], [LSE], ArgumentTypeError, r"outputs\[0\] is a NoneType"),
        ([OUT, OUT.int()], [LSE, LSE], ArgumentTypeError, r"outputs\[1\] has dtype torch.int32"),
        (
            [OUT, OUT.half()],
            [LSE, LSE],
            ArgumentTypeError,
            r"outputs\[1\] has dtype torch.float16; it.*32",
        ),
        ([OUT], [LSE.long()], ArgumentTypeError, r"lses\[0\] has dtype torch.int64"),
        (
            [OUT, OUT[:1]],
            [LSE, LSE[:1]],
            ArgumentError,
            r"outputs\[1\] has shape \[1, 3\].*\[2, 3\]",
        ),
        ([LSE[0]], [LSE[0]], ArgumentError, r"outputs\[0\] has shape \[\]"),
        (
            [OUT, OUT],
            [LSE, OUT],
            ArgumentError,
            r"lses\[1\] has shape \[2, 3\]; it must be .*\[2\]",
        ),
        ([OUT, OUT.to("meta")], [LSE, LSE], ArgumentError, r"outputs\[1\] is on device meta.*cpu"),
        ([OUT], [LSE.to("meta")], ArgumentError, r"lses\[0\] is on device meta"),
    ],
)
def test_bad_arguments(outputs: Any, lses: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        natc.merge_attentions(outputs, lses)
