"""What natc.reference says about arguments that it cannot accept."""

from __future__ import annotations

import pytest
import torch

from natc.checks.inputs import make_inputs
from natc.errors import ArgumentError, ArgumentTypeError
from natc.reference import neighborhood_attention, neighborhood_sum

QUERY, KEY, VALUE, RPB = make_inputs((2, 6, 5, 4, 8), heads_kv=2, kernel_size=3)
TOKENS = torch.zeros(2, 3, 2, 8)

VALUE_ERRORS = [
    ({"query": QUERY[0, 0]}, r"^query has 3 axes; it must have 4, 5 or 6"),
    (
        {"key": KEY[:, :4]},
        r"^key has shape \[2, 4, 5, 2, 8\]; it must be \[2, 6, 5, heads_kv, 8\]",
    ),
    ({"key": KEY[..., :4]}, r"^key has shape .* it must be \[2, 6, 5, heads_kv, 8\]"),
    ({"key": KEY[:, 0]}, r"^key has shape \[2, 5, 2, 8\]"),
    ({"key": QUERY[..., :3, :]}, r"^key has 3 heads; their number must divide .* 4"),
    ({"value": QUERY}, r"^value has shape \(2, 6, 5, 4, 8\); .* key.* \(2, 6, 5, 2, 8\)"),
    ({"rpb": RPB[:, :4]}, r"^rpb has shape \[4, 4, 5\]; it must be \[4, 5, 5\]"),
    ({"kernel_size": 0}, r"^kernel_size is 0; it must be at least 1"),
    ({"kernel_size": (3,)}, r"^kernel_size is \(3,\); it must have 2 entries"),
    ({"dilation": (1, 0)}, r"^dilation is \(1, 0\); it must be at least 1"),
    ({"dilation": (1, 1, 1)}, r"^dilation is \(1, 1, 1\); it must have 2 entries"),
    ({"stride": 4}, r"^stride is 4; it must not exceed kernel_size, which is 3"),
    ({"is_causal": (True,)}, r"^is_causal is \(True,\); it must have 2 entries"),
    ({"additional_keys": TOKENS}, r"^additional_values is None"),
    ({"additional_values": TOKENS}, r"^additional_keys is None"),
    (
        {"additional_keys": TOKENS[..., :4], "additional_values": TOKENS},
        r"^additional_keys has shape \[2, 3, 2, 4\]; it must be \[2, tokens, 2, 8\]",
    ),
    (
        {"additional_keys": TOKENS, "additional_values": TOKENS[:, :2]},
        r"^additional_values has shape \[2, 2, 2, 8\]; it must be \[2, 3, 2, 8\]",
    ),
    ({"key": KEY.to("meta")}, r"^key is on device meta; it must be on that of query, cpu"),
    ({"rpb": RPB.to("meta")}, r"^rpb is on device meta"),
]

TYPE_ERRORS = [
    ({"query": None}, r"^query is a NoneType; it must be a torch.Tensor"),
    ({"query": QUERY.long()}, r"^query has dtype torch.int64; it must be one of"),
    ({"key": KEY.double()}, r"^key has dtype torch.float64; it must be .* torch.float32"),
    ({"value": VALUE.half()}, r"^value has dtype torch.float16"),
    ({"rpb": 0.5}, r"^rpb is a float"),
    ({"rpb": RPB.int()}, r"^rpb has dtype torch.int32"),
    ({"kernel_size": 3.0}, r"^kernel_size is 3.0; it must be an integer, or one for each axis"),
    ({"kernel_size": True}, r"^kernel_size is True"),
    ({"dilation": "2"}, r"^dilation is '2'"),
    ({"is_causal": 1}, r"^is_causal is 1; it must be True or False"),
    ({"scale": "1"}, r"^scale is '1'; it must be a number or None"),
]


def attention(changed: dict) -> object:
    arguments = {"query": QUERY, "key": KEY, "value": VALUE, "kernel_size": 3, **changed}
    return neighborhood_attention(**arguments)


@pytest.mark.parametrize(("changed", "message"), VALUE_ERRORS)
def test_values_and_shapes(changed: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        attention(changed)


@pytest.mark.parametrize(("changed", "message"), TYPE_ERRORS)
def test_types(changed: dict, message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        attention(changed)


def test_what_is_unchanged_is_accepted() -> None:
    assert attention({"rpb": RPB}).shape == QUERY.shape


def test_number_of_weights() -> None:
    with pytest.raises(ArgumentError, match=r"^weights has 8 entries .* must have 9: 9 taps"):
        neighborhood_sum(QUERY, VALUE, 3)
