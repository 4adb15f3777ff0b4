"""natc.reference against torch's self-attention and autograd, and at special numbers.

Random calls are compared with brute force by test_sweep_reference.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from natc.checks.inputs import make_inputs
from natc.checks.tolerance import check_close
from natc.reference import (
    attended_sum,
    neighborhood_attention,
    neighborhood_gradients,
    neighborhood_logits,
    neighborhood_second_gradients,
    neighborhood_sum,
    rpb_sum,
)

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("kernel_size", [5, 6, 9])
@pytest.mark.parametrize("spatial", [(5,), (4, 5), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_window_as_large_as_the_map_is_self_attention(spatial, kernel_size, is_causal) -> None:
    if is_causal and len(spatial) > 1:
        spatial = spatial[-1:]  # a causal order exists only along one axis
    inputs = make_inputs((2, *spatial, 4, 8), heads_kv=2).to_float64()
    out = neighborhood_attention(*inputs[:3], kernel_size, is_causal=is_causal)
    query, key, value = (tensor.flatten(1, -3).transpose(1, 2) for tensor in inputs[:3])
    expected = scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, enable_gqa=True
    )
    expected = expected.transpose(1, 2).unflatten(1, spatial)
    check_close(out, expected, torch.float64, "out")


def test_second_derivatives() -> None:
    inputs = make_inputs((1, 3, 3, 1, 2), kernel_size=(2, 3))
    tensors = [tensor.double().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradgradcheck(
        lambda query, key, value, rpb: neighborhood_attention(query, key, value, (2, 3), rpb=rpb),
        tensors,
    )


def test_autocast_changes_nothing() -> None:
    inputs = make_inputs((1, 6, 6, 2, 16))
    expected = neighborhood_attention(*inputs[:3], 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(neighborhood_attention(*inputs[:3], 3), expected)


@pytest.mark.parametrize("is_causal", [False, True])
def test_nan_outside_the_window_stays_outside(is_causal) -> None:
    query, key, value, _ = make_inputs((1, 12, 1, 4))
    expected = neighborhood_attention(query, key, value, 3, is_causal=is_causal)
    key, value = key.clone(), value.clone()
    key[:, 6] = value[:, 6] = math.nan
    out = neighborhood_attention(query, key, value, 3, is_causal=is_causal)
    touched = [6, 7, 8] if is_causal else [5, 6, 7]
    clean = [i for i in range(12) if i not in touched]
    assert out[:, touched].isnan().all()
    assert torch.equal(out[:, clean], expected[:, clean])


@pytest.mark.parametrize("shape", [(0, 5, 2, 4), (2, 0, 2, 4), (0, 3, 4, 2, 4)], ids=str)
def test_empty_inputs_give_empty_results(shape) -> None:
    inputs = make_inputs(shape)
    out, lse = neighborhood_attention(*inputs[:3], 3, return_lse=True)
    assert (out.shape, lse.shape) == (shape, shape[:-1])


OPTIONS = [
    {},
    {"dilation": 2},
    {"stride": 3, "is_causal": True},
    {"is_causal": True, "dilation": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(2, 9, 4, 5), (1, 5, 6, 4, 5), (1, 3, 4, 5, 4, 5)], ids=str)
def test_gradients_written_out_are_those_of_autograd(shape, options) -> None:
    kernel_size = (3, 4, 3)[: len(shape) - 3]
    inputs = make_inputs(shape, heads_kv=2, value_dim=3, kernel_size=kernel_size).to_float64()
    tensors = [tensor.requires_grad_() for tensor in inputs]
    results = neighborhood_attention(
        *tensors[:3], kernel_size, rpb=tensors[3], return_lse=True, **options
    )
    d_output, d_lse = (torch.randn_like(result, requires_grad=True) for result in results)
    expected = torch.autograd.grad(results, tensors, (d_output, d_lse), create_graph=True)
    call = (*tensors[:3], kernel_size, d_output, d_lse)
    gradients = neighborhood_gradients(*call, rpb=tensors[3], **options)
    torch.testing.assert_close(gradients, expected)
    for index in range(4):
        wanted = [index == position for position in range(4)]
        alone = neighborhood_gradients(*call, rpb=tensors[3], wanted=wanted, **options)
        assert [gradient is not None for gradient in alone] == wanted
        torch.testing.assert_close(alone[index], expected[index])

    directions = [torch.randn_like(tensor) for tensor in tensors]
    inputs_and_upstream = (d_output, d_lse, *tensors)
    expected = torch.autograd.grad(expected, inputs_and_upstream, directions)
    call = (*tensors[:3], kernel_size, d_output, d_lse, directions)
    gradients = neighborhood_second_gradients(*call, rpb=tensors[3], **options)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sums_over_the_queries_of_a_key_are_transposes(options) -> None:
    query, _, vectors, rpb = make_inputs((2, 9, 4, 3), kernel_size=4).to_float64()
    zeros = torch.zeros_like(query)
    attn = torch.randn(2, 9, 4, 4, dtype=torch.float64)
    keys = torch.randn_like(vectors, requires_grad=True)
    (expected,) = torch.autograd.grad(neighborhood_sum(attn, keys, 4, **options), keys, vectors)
    missing = neighborhood_logits(query, query, 4, **options).isneginf()
    dirty = attn.masked_fill(missing, math.nan)
    torch.testing.assert_close(attended_sum(dirty, vectors, 4, **options), expected)
    rpb.requires_grad_()
    logits = neighborhood_logits(zeros, zeros, 4, rpb=rpb, fill=0.0, **options)
    (expected,) = torch.autograd.grad(logits, rpb, attn)
    torch.testing.assert_close(rpb_sum(dirty, 4, **options), expected)
    low = rpb_sum(dirty.half(), 4, **options)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), expected, rtol=1e-2, atol=1e-2)


def self_attention(query, key, value, bias):
    """torch's own, of one head: [batch, positions, 1, channels]."""
    logits = query[:, :, 0] @ key[:, :, 0].mT * query.shape[-1] ** -0.5 + bias
    return (logits.softmax(-1) @ value[:, :, 0])[:, :, None], logits.logsumexp(-1)[:, :, None]


@pytest.mark.parametrize("masked", ["some", "a query", "all"])
def test_infinite_biases_are_those_of_a_softmax(masked) -> None:
    """Over a window as large as the map, so that every query has its own row of biases."""
    length = 5
    rpb = torch.randn(1, 2 * length - 1, dtype=torch.float64)
    if masked == "some":
        rpb[0, ::2] = -math.inf
    elif masked == "a query":
        rpb[0, :length] = -math.inf  # every key of the last query, which has none after itself
    else:
        rpb[:] = -math.inf
    offsets = torch.arange(length)[None, :] - torch.arange(length)[:, None] + length - 1
    results = []
    for of_torch in (False, True):
        inputs = make_inputs((1, length, 1, 2)).to_float64()
        tensors = [tensor.requires_grad_() for tensor in (*inputs[:3], rpb.clone())]
        if of_torch:
            output, lse = self_attention(*tensors[:3], tensors[3][0, offsets])
        else:
            output, lse = neighborhood_attention(
                *tensors[:3], length, rpb=tensors[3], return_lse=True
            )
        first = torch.autograd.grad(output.sin().sum() + output.sum(), tensors)
        results.append((output.detach(), lse.detach(), *first))
        if not of_torch:
            d_output = output.detach().cos() + 1
            written = neighborhood_gradients(
                *tensors[:3], length, d_output, rpb=tensors[3], scale=None
            )
            torch.testing.assert_close(written, first, equal_nan=True)
    torch.testing.assert_close(*results, equal_nan=True)
    dead = {"some": 0, "a query": 1, "all": length}[masked]
    assert results[0][0].isnan().any(-1).sum() == dead
    assert results[0][1].isneginf().sum() == dead


def test_huge_and_infinite_scores_are_those_of_a_softmax() -> None:
    query, key, value, _ = make_inputs((1, 5, 1, 2)).to_float64()
    for query_factor, poison in ((1e8, None), (1e200, None), (1.0, math.inf), (1.0, math.nan)):
        key = key.clone()
        if poison is not None:
            key[0, 2, 0, 0] = poison
        output, lse = neighborhood_attention(query * query_factor, key, value, 5, return_lse=True)
        wanted = self_attention(query * query_factor, key, value, torch.zeros(5, 5))
        torch.testing.assert_close((output, lse), wanted, equal_nan=True)


def test_additional_tokens_are_all_that_is_attended() -> None:
    inputs = make_inputs((1, 5, 1, 2), kernel_size=3).to_float64()
    more = make_inputs((1, 2, 1, 2), seed=1).to_float64()
    rpb = torch.full_like(inputs.rpb, -math.inf)
    output, lse = neighborhood_attention(
        *inputs[:3], 3, rpb=rpb, additional_keys=more.key, additional_values=more.value,
        return_lse=True,
    )  # fmt: skip
    wanted = self_attention(inputs.query, more.key, more.value, 0.0)
    torch.testing.assert_close((output, lse), wanted)
