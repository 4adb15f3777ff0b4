"""Without a kernel, a window, dilation or stride far beyond the map costs no more than the map."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import natc
from natc import reference

HUGE = (2**31, 2**63, 2**70)


def results(function: Any, tensors: Any, *size: int, **options: Any) -> list[torch.Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = function(*leaves, *size, **options)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.parametrize("lengths", [(5, 4), (3, 6), (1, 2)], ids=str)
def test_they_are_what_they_were_asked_for(lengths: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, *lengths, 2, 3, dtype=torch.float64, generator=generator) for _ in range(3)
    ]
    for size, dilation, stride, causal in itertools.product(
        (2, 5, 9), (1, 3, 7), (1, 2, 7, 9), (False, True)
    ):
        if stride > size:
            continue
        options = {"dilation": dilation, "stride": stride, "is_causal": causal}
        expected = results(reference.neighborhood_attention, tensors, size, **options)
        with natc.force_reference():
            actual = results(natc.na2d, tensors, size, **options)
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("huge", HUGE)
def test_all_windows_beyond_the_map_are_equal(huge: int) -> None:
    tensors = [torch.randn(1, 4, 5, 1, 3, dtype=torch.float64) for _ in range(3)]
    with natc.force_reference():
        for large, plain in (
            ({"kernel_size": huge}, {"kernel_size": 5}),
            ({"kernel_size": (2, huge)}, {"kernel_size": (2, 5)}),
            (
                {"kernel_size": huge, "stride": huge, "is_causal": True},
                {"kernel_size": 5, "stride": 5, "is_causal": True},
            ),
            ({"kernel_size": 3, "dilation": huge}, {"kernel_size": 3, "dilation": 5}),
        ):
            expected = results(natc.na2d, tensors, **plain)
            torch.testing.assert_close(results(natc.na2d, tensors, **large), expected)
        query = tensors[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            natc.na2d(query, *tensors[1:], huge).square().sum(), query, create_graph=True
        )
        (second,) = torch.autograd.grad(gradient.sum(), query)
        assert second.isfinite().all() and second.any()
