"""The unfused functions: their results on the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.c_library import LibraryDirectory
from support.layouts import noncontiguous
from torch import Tensor

import natc
from natc.checks.inputs import make_inputs
from natc.reference import neighborhood_logits, neighborhood_sum

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def on_the_reference(libraries: LibraryDirectory) -> Any:
    with natc.force_reference():
        yield


def functions(rank: int) -> tuple[Any, Any]:
    return (
        getattr(natc.functional, f"na{rank}d_qk"),
        getattr(natc.functional, f"na{rank}d_av"),
    )


CASES = [
    ((2, 9, 4, 5), {"kernel_size": 4, "stride": 3, "dilation": 2}),
    ((2, 5, 7, 4, 5), {"kernel_size": [2, 5], "stride": (2, 3), "is_causal": (True, False)}),
    ((1, 3, 4, 5, 4, 5), {"kernel_size": (2, 3, 7), "is_causal": True, "dilation": (1, 2, 1)}),
]


@pytest.mark.parametrize("tokens", [None, 0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_equal_to_the_reference(
    shape: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype, tokens: int | None
) -> None:
    qk, av = functions(len(shape) - 3)
    sizes = options["kernel_size"]
    inputs = make_inputs(
        shape, kernel_size=sizes if isinstance(sizes, int) else tuple(sizes), heads_kv=2,
        dtype=dtype,
    )  # fmt: skip
    more = make_inputs((shape[0], tokens or 0, 2, 5), dtype=dtype, seed=1)
    keys, values = (None, None) if tokens is None else (more.key, more.value)
    # Whatever their strides.
    query, key, value = (noncontiguous(t.movedim(-2, 1)) for t in inputs[:3])

    def first(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.transpose(1, 2)

    logits = qk(query, key, **options, rpb=inputs.rpb, additional_keys=first(keys))
    wanted = neighborhood_logits(
        *inputs[:2], **options, rpb=inputs.rpb, scale=1.0, additional_keys=keys
    )
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, wanted.movedim(-2, 1).to(dtype))
    weights = wanted.softmax(-1).to(dtype)
    output = av(weights.movedim(-2, 1), value, **options, additional_values=first(values))
    wanted = neighborhood_sum(weights, inputs.value, **options, additional_values=values)
    assert output.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        output, wanted.movedim(-2, 1), rtol=max(tolerance, 1e-12), atol=4 * tolerance
    )


def test_taps_without_a_key() -> None:
    query = torch.randn(1, 1, 4, 2, requires_grad=True)
    attn = natc.functional.na1d_qk(query, query.detach(), 3, is_causal=True)
    assert (attn[0, 0] == -math.inf).tolist() == [
        [False, True, True], [False, False, True], [False] * 3, [False] * 3,
    ]  # fmt: skip
    # They have no gradient, and what stands there is ignored.
    attn.backward(torch.full_like(attn, math.nan).masked_fill(attn.isfinite(), 1.0))
    assert query.grad is not None and query.grad.isfinite().all()
    weights = torch.rand(1, 1, 4, 3)
    value = torch.randn(1, 1, 4, 2)
    expected = natc.functional.na1d_av(weights, value, 3, is_causal=True)
    for garbage in (math.nan, math.inf, -math.inf):
        dirty = weights.masked_fill(attn.isneginf(), garbage).requires_grad_()
        values = value.clone().requires_grad_()
        output = natc.functional.na1d_av(dirty, values, 3, is_causal=True)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        output.sum().backward()
        assert dirty.grad is not None and values.grad is not None
        assert (dirty.grad[attn.isneginf()] == 0).all()
        assert values.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "dilation": 2}], ids=str)
def test_derivatives_of_any_order(options: dict[str, Any]) -> None:
    inputs = make_inputs((1, 4, 2, 2), kernel_size=3, heads_kv=1)
    more = make_inputs((1, 1, 1, 2), seed=1)
    tensors = [t.double() for t in (*inputs, more.key, more.value)]
    tensors = [t if t.ndim == 2 else t.transpose(1, 2) for t in tensors]
    leaves = [t.detach().clone().requires_grad_() for t in tensors]

    def qk(query: Tensor, key: Tensor, rpb: Tensor, keys: Tensor) -> Tensor:
        attn = natc.functional.na1d_qk(query, key, 3, rpb=rpb, additional_keys=keys, **options)
        return attn[attn.isfinite()]

    attn = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def av(attn: Tensor, value: Tensor, values: Tensor) -> Tensor:
        return natc.functional.na1d_av(attn, value, 3, additional_values=values, **options)

    query, key, value, rpb, keys, values = leaves
    for function, arguments in ((qk, (query, key, rpb, keys)), (av, (attn, value, values))):
        assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
        # The fast mode takes one random direction instead of every element.
        assert torch.autograd.gradgradcheck(
            function, arguments, check_fwd_over_rev=True, fast_mode=True
        )


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("tokens", [None, 2])
def test_an_empty_axis_gives_an_empty_result(axis: int, tokens: int | None) -> None:
    shape = [2, 3, 4, 5, 6]
    shape[axis] = 0
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    rpb = torch.randn(shape[1], 5, 5, requires_grad=True)
    extra = None
    if tokens is not None:
        extra = torch.randn(shape[0], shape[1], tokens, 6, requires_grad=True)
    attn = natc.functional.na2d_qk(query, key, 3, rpb=rpb, additional_keys=extra)
    assert attn.shape == (*shape[:-1], 9 + (tokens or 0))
    output = natc.functional.na2d_av(attn, value, 3, additional_values=extra)
    assert output.shape == tuple(shape)
    output.sum().backward()
    for tensor in (query, key, value, rpb, extra):
        if tensor is not None:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor))
