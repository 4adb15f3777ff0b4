"""support.brute_force against itself, and the reference against it.

What every kernel is tested against must be right by other means than the reference:
test_reference_golden.py compares both with released NATTEN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import brute_force
from support.neighbors import neighbors, pairs

from natc.reference import neighborhood_attention, neighborhood_logits, neighborhood_sum
from natc.window import taps

Arrays = dict[str, Any]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 2, 3, 7])
def test_neighbors_are_those_of_the_formulas(dilation: int, is_causal: bool) -> None:
    """Two definitions, by search and by formula, for every window of small axes."""
    for length in (*range(1, 24), 41):
        for kernel_size in (1, 2, 3, 4, 5, 8, 13):
            for stride in {1, 2, 3, kernel_size}:
                if stride > kernel_size:
                    continue
                attended = neighbors(length, kernel_size, dilation, stride, is_causal)
                assert [[neighbor.position for neighbor in query] for query in attended] == [
                    taps(i, length, kernel_size, dilation, stride=stride, is_causal=is_causal)
                    for i in range(length)
                ]
                for i, query in enumerate(attended):
                    for place, neighbor in enumerate(query):
                        assert neighbor.tap == place
                        offset = (neighbor.position - i) / dilation
                        assert neighbor.bias == offset + kernel_size - 1
                        assert 0 <= neighbor.bias < 2 * kernel_size - 1


def test_pairs_of_a_map_are_products_of_its_axes() -> None:
    all_pairs = pairs((3, 5), (2, 3), (1, 2), (1, 1), (True, False))
    assert (all_pairs.positions, all_pairs.taps) == (15, 6)
    # The query at (0, 1): itself and nothing above; columns 1 and 3 are its whole group.
    own = all_pairs.query == 1
    assert all_pairs.key[own].tolist() == [1, 3]
    assert all_pairs.tap[own].tolist() == [0, 1]
    assert all_pairs.bias[own].tolist() == [1 * 5 + 2, 1 * 5 + 3]


OPTIONS = [
    # spatial, kernel_size, dilation, stride, is_causal, heads, heads_kv, value_dim, tokens, rpb
    ((5,), (3,), (1,), (1,), (False,), 2, 1, 3, 0, True),
    ((7,), (4,), (2,), (3,), (True,), 1, 1, 1, 2, True),
    ((4, 5), (3, 2), (1, 2), (2, 1), (True, False), 4, 2, 2, 1, True),
    ((2, 6), (5, 3), (1, 2), (1, 1), (False, False), 1, 1, 2, 0, False),
    ((2, 3, 4), (2, 3, 2), (1, 1, 2), (1, 3, 1), (False, True, False), 2, 1, 3, 2, True),
    ((2, 3, 4), (1, 3, 2), (2, 1, 2), (1, 2, 1), (True, False, True), 2, 1, 3, 0, True),
    ((3, 2), (1, 1), (1, 2), (1, 1), (False, True), 2, 1, 2, 1, True),
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def make(options: tuple[Any, ...], *, heads_last: bool) -> tuple[Arrays, Arrays]:
    """Return random arrays (some None) and the options of a call."""
    spatial, kernel_size, dilation, stride, causal, heads, heads_kv, value_dim, tokens, rpb = (
        options
    )
    random = np.random.default_rng(7).standard_normal

    def draw(where: tuple[int, ...], number: int, channels: int) -> Any:
        return random(
            (2, *where, number, channels) if heads_last else (2, number, *where, channels)
        )

    arrays = {
        "query": draw(spatial, heads, 3),
        "key": draw(spatial, heads_kv, 3),
        "value": draw(spatial, heads_kv, value_dim),
        "rpb": random((heads, *(2 * k - 1 for k in kernel_size))) if rpb else None,
        "additional_keys": draw((tokens,), heads_kv, 3) if tokens else None,
        "additional_values": draw((tokens,), heads_kv, value_dim) if tokens else None,
    }
    where = {
        "kernel_size": kernel_size,
        "dilation": dilation,
        "stride": stride,
        "is_causal": causal,
    }
    return arrays, where


@each_option
def test_gradients_by_hand_match_finite_differences(options: tuple[Any, ...]) -> None:
    arrays, where = make(options, heads_last=True)
    random = np.random.default_rng(8).standard_normal
    # Tokens and rpb are keywords of the same names.
    plain = brute_force.attention(**arrays, **where, scale=0.7)
    d_output, d_lse = random(plain["output"].shape), random(plain["lse"].shape)
    gradients = brute_force.attention(**arrays, **where, scale=0.7, d_output=d_output, d_lse=d_lse)

    def loss(changed: Arrays) -> float:
        results = brute_force.attention(**changed, **where, scale=0.7)
        return float((results["output"] * d_output).sum() + (results["lse"] * d_lse).sum())

    check_gradients(arrays, gradients, loss)


@each_option
def test_unfused_gradients_by_hand_match_finite_differences(options: tuple[Any, ...]) -> None:
    arrays, where = make(options, heads_last=False)
    value, extra = arrays.pop("value"), arrays.pop("additional_values")
    random = np.random.default_rng(8).standard_normal
    attn = brute_force.qk(**arrays, **where, scale=0.7)["attn"]
    d_attn = random(attn.shape)
    gradients = brute_force.qk(**arrays, **where, scale=0.7, d_attn=d_attn)

    def of_qk(changed: Arrays) -> float:
        logits = brute_force.qk(**changed, **where, scale=0.7)["attn"]
        return float((np.where(np.isfinite(logits), logits, 0) * d_attn).sum())

    check_gradients(arrays, gradients, of_qk)
    weights = {"attn": random(attn.shape), "value": value, "additional_values": extra}
    d_output = random(brute_force.av(**weights, **where)["output"].shape)
    gradients = brute_force.av(**weights, **where, d_output=d_output)

    def of_av(changed: Arrays) -> float:
        return float((brute_force.av(**changed, **where)["output"] * d_output).sum())

    check_gradients(weights, gradients, of_av)


def check_gradients(arrays: Arrays, gradients: Arrays, loss: Any) -> None:
    """Compare each gradient with the change of the loss along random directions."""
    random = np.random.default_rng(9).standard_normal
    step = 1e-5
    for name, array in arrays.items():
        if array is None:
            assert f"d_{name}" not in gradients
            continue
        for _ in range(3):
            direction = random(array.shape)
            ahead = loss({**arrays, name: array + step * direction})
            behind = loss({**arrays, name: array - step * direction})
            slope = (gradients[f"d_{name}"] * direction).sum()
            assert slope == pytest.approx((ahead - behind) / (2 * step), 1e-7, 1e-8)


@each_option
def test_the_reference_matches_brute_force(options: tuple[Any, ...]) -> None:
    arrays, where = make(options, heads_last=True)
    tensors = {
        name: None if array is None else torch.from_numpy(array).requires_grad_()
        for name, array in arrays.items()
    }
    output, lse = neighborhood_attention(**tensors, **where, scale=0.7, return_lse=True)
    d_output, d_lse = torch.randn_like(output), torch.randn_like(lse)
    inputs = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    gradients = torch.autograd.grad((output, lse), list(inputs.values()), (d_output, d_lse))
    expected = brute_force.attention(
        **arrays, **where, scale=0.7, d_output=d_output.numpy(), d_lse=d_lse.numpy()
    )
    results = {f"d_{name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}
    results |= {"output": output, "lse": lse}
    assert set(results) == set(expected)
    for name, result in results.items():
        torch.testing.assert_close(result.detach(), torch.from_numpy(expected[name]).clone())


@each_option
def test_the_unfused_reference_matches_brute_force(options: tuple[Any, ...]) -> None:
    arrays, where = make(options, heads_last=True)
    first = {
        n: None if a is None or n == "rpb" else np.moveaxis(a, -2, 1) for n, a in arrays.items()
    }
    first["rpb"] = arrays["rpb"]
    value, extra = first.pop("value"), first.pop("additional_values")
    attn = brute_force.qk(**first, **where, scale=0.7)["attn"]
    as_tensors = {n: None if a is None else torch.from_numpy(a) for n, a in arrays.items()}
    of_value = as_tensors.pop("value"), as_tensors.pop("additional_values")
    logits = neighborhood_logits(**as_tensors, **where, scale=0.7)
    torch.testing.assert_close(logits.movedim(-2, 1), torch.from_numpy(attn))
    weights = np.exp(attn)
    output = brute_force.av(weights, value, **where, additional_values=extra)["output"]
    sums = neighborhood_sum(logits.exp(), of_value[0], **where, additional_values=of_value[1])
    torch.testing.assert_close(sums.movedim(-2, 1), torch.from_numpy(output))
