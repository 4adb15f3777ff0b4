"""Bad arguments of natc's functions: errors have a type, and name the argument and its value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.c_library import KERNEL_SIZE, SPECS, LibraryDirectory

import natc
from natc.errors import ArgumentError, ArgumentTypeError, NatcError
from natc.functional import na2d_av, na2d_qk
from natc.reference import neighborhood_attention, neighborhood_sum

pytestmark = pytest.mark.quick

T = torch.zeros(2, 5, 7, 3, 8)
RPB = torch.zeros(3, 5, 5)
TOKENS = torch.zeros(2, 4, 3, 8)
Cases = list[tuple[dict[str, Any], str]]

# Changed arguments of a call, and the beginning of the message.
TYPES: Cases = [
    ({"query": [1.0]}, "query is a list"),
    ({"query": None}, "query is a NoneType"),
    ({"value": None}, "value is a NoneType"),
    ({"query": T.int()}, "query has dtype torch.int32"),
    ({"query": T.long()}, "query has dtype torch.int64"),
    ({"query": T.cfloat()}, "query has dtype torch.complex64"),
    ({"key": T.half()}, "key has dtype torch.float16.*torch.float32"),
    ({"key": T.double()}, "key has dtype torch.float64.*torch.float32"),
    ({"value": T.half()}, "value has dtype torch.float16"),
    ({"kernel_size": 3.0}, "kernel_size is 3.0"),
    ({"kernel_size": True}, "kernel_size is True"),
    ({"kernel_size": "33"}, "kernel_size is '33'"),
    ({"kernel_size": (3, "3")}, r"kernel_size is \(3, '3'\)"),
    ({"dilation": None}, "dilation is None"),
    ({"dilation": "2"}, "dilation is '2'"),
    ({"is_causal": 1}, "is_causal is 1; it must be True or False"),
    ({"scale": "1"}, "scale is '1'"),
    ({"scale": True}, "scale is True"),
    ({"scale": torch.tensor(1.0)}, "scale is tensor"),
    ({"rpb": 1}, "rpb is a int"),
    ({"rpb": RPB.int()}, "rpb has dtype torch.int32"),
    (
        {"additional_values": TOKENS.half(), "additional_keys": TOKENS},
        "additional_values has dtype torch.float16.*torch.float32",
    ),
]
VALUES: Cases = [
    ({"key": T.to("meta")}, "key is on device meta.*cpu, as query"),
    ({"value": T.to("meta")}, "value is on device meta"),
    ({"query": T[0, 0]}, "query has 3 axes"),
    ({"query": T[None, None]}, "query has 7 axes"),
    ({"key": T[:, 1:]}, r"key has shape \[2, 4, 7, 3, 8\].*\[2, 5, 7, heads_kv, 8\]"),
    ({"key": T[..., 1:]}, r"key has shape \[2, 5, 7, 3, 7\].*\[2, 5, 7, heads_kv, 8\]"),
    ({"key": T[:, :, :, :2]}, "key has 2 heads.* 3"),
    ({"key": T[:, :, :, :0]}, "key has 0 heads"),
    ({"key": T[0]}, r"key has shape \[5, 7, 3, 8\]"),
    ({"value": T[:, 1:]}, r"value has shape .*2, 4, 7, 3, 8"),
    ({"value": T[:, :, :, :1]}, r"value has shape .*2, 5, 7, 1, 8.*2, 5, 7, 3"),
    ({"kernel_size": 0}, "kernel_size is 0; it must be at least 1"),
    ({"kernel_size": (3, 0)}, r"kernel_size is \(3, 0\)"),
    ({"kernel_size": (3,)}, r"kernel_size is \(3,\); it must have 2 entries"),
    ({"kernel_size": (3, 3, 3)}, r"kernel_size is \(3, 3, 3\); it must have 2 entries"),
    ({"dilation": 0}, "dilation is 0; it must be at least 1"),
    ({"dilation": (1, -1)}, r"dilation is \(1, -1\)"),
    ({"dilation": (1, 1, 1)}, r"dilation is \(1, 1, 1\); it must have 2 entries"),
    ({"stride": 0}, "stride is 0"),
    ({"stride": 4}, "stride is 4; it must not exceed kernel_size, which is 3"),
    ({"stride": (1, 4)}, r"stride is \(1, 4\)"),
    ({"is_causal": (True,)}, r"is_causal is \(True,\); it must have 2 entries"),
    ({"rpb": RPB.to("meta")}, "rpb is on device meta"),
    ({"rpb": RPB[:2]}, r"rpb has shape \[2, 5, 5\].*\[3, 5, 5\]"),
    ({"rpb": RPB[..., 0]}, r"rpb has shape \[3, 5\]"),
    ({"rpb": torch.zeros(3, 5, 7)}, r"rpb has shape \[3, 5, 7\]"),
    ({"additional_keys": TOKENS}, "additional_values is None"),
    ({"additional_values": TOKENS}, "additional_keys is None"),
    (
        {"additional_keys": TOKENS[:, :, :1], "additional_values": TOKENS},
        r"additional_keys has shape \[2, 4, 1, 8\].*\[2, tokens, 3, 8\]",
    ),
    (
        {"additional_keys": TOKENS[..., :4], "additional_values": TOKENS},
        r"additional_keys has shape \[2, 4, 3, 4\].*\[2, tokens, 3, 8\]",
    ),
    (
        {"additional_values": TOKENS[:, 1:], "additional_keys": TOKENS},
        r"additional_values has shape \[2, 3, 3, 8\].*\[2, 4, 3, 8\]",
    ),
]


def refuse(function: Callable[..., Any], error: type, message: str, **arguments: Any) -> None:
    with pytest.raises(error, match=f"^{message}") as raised:
        function(**arguments)
    assert isinstance(raised.value, NatcError)


GOOD = {"query": T, "key": T, "value": T, "kernel_size": KERNEL_SIZE}
CASES = [(changes, ArgumentTypeError, message) for changes, message in TYPES]
CASES += [(changes, ArgumentError, message) for changes, message in VALUES]


@pytest.mark.parametrize("attend", [natc.na2d, neighborhood_attention], ids=["natc", "reference"])
@pytest.mark.parametrize(("changes", "error", "message"), CASES)
def test_attention(
    kernels: LibraryDirectory, changes: dict[str, Any], error: type, message: str, attend: Any
) -> None:
    refuse(attend, error, message, **GOOD | changes)
    # Opening the library here is the first time that it is opened.
    assert kernels.calls(SPECS[False]) == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"key": T.to_sparse()}, ArgumentTypeError, "key has layout torch.sparse_coo"),
        ({"query": T[0]}, ArgumentError, r"query has 4 axes.* must have 5: \[batch, height"),
        ({"query": T[None]}, ArgumentError, r"query has 6 axes.* must have 5: \[batch, height"),
        ({"query": T[..., :0]}, ArgumentError, "query .*head_dim must be at least 1"),
        ({"value": T[..., :0]}, ArgumentError, "value .*value_dim, must be at least 1"),
        ({"scale": math.nan}, ArgumentError, "scale is nan; it must be finite"),
        ({"scale": math.inf}, ArgumentError, "scale is inf"),
    ],
)
def test_na2d(changes: dict[str, Any], error: type, message: str) -> None:
    refuse(natc.na2d, error, message, **GOOD | changes)


def test_entries_of_attn() -> None:
    with pytest.raises(ArgumentError, match=r"^attn has 8 entries .* must have 9: 9 taps"):
        neighborhood_sum(T, T, 3)


Q = torch.zeros(2, 4, 5, 6, 8)
A = torch.zeros(2, 4, 5, 6, 9)
E = torch.zeros(2, 4, 3, 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": None}, ArgumentTypeError, "query is a NoneType"),
        ({"query": Q[0]}, ArgumentError, r"query has 4 axes.*5: \[batch, heads, height, width, h"),
        ({"query": Q[..., :0]}, ArgumentError, "query has shape .*head_dim must be at least 1"),
        ({"query": Q.int()}, ArgumentTypeError, "query has dtype torch.int32"),
        ({"key": Q.half()}, ArgumentTypeError, "key has dtype torch.float16"),
        ({"key": Q.to("meta")}, ArgumentError, "key is on device meta"),
        ({"key": Q[:, :3]}, ArgumentError, "key has 3 heads.* 4"),
        ({"key": Q[..., :7]}, ArgumentError, r"key has shape .*\[2, heads_kv, 5, 6, 8\]"),
        ({"rpb": torch.zeros(4, 5, 3)}, ArgumentError, r"rpb has shape .*\[4, 5, 5\]"),
        ({"kernel_size": 0}, ArgumentError, "kernel_size is 0"),
        ({"stride": 4}, ArgumentError, "stride is 4"),
        ({"is_causal": 1}, ArgumentTypeError, "is_causal is 1"),
        ({"additional_keys": E[..., :3]}, ArgumentError, r"additional_keys .*\[2, 4, tokens, 8\]"),
    ],
)
def test_qk(changes: dict[str, Any], error: type, message: str) -> None:
    refuse(na2d_qk, error, message, **{"query": Q, "key": Q, "kernel_size": 3, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attn": [1]}, ArgumentTypeError, "attn is a list"),
        ({"attn": A[..., :8]}, ArgumentError, r"attn has shape .*\[2, heads, 5, 6, 9\], 9 taps"),
        ({"attn": A[:, :, :4]}, ArgumentError, r"attn has shape \[2, 4, 4, 6, 9\]"),
        ({"attn": A[:, :3]}, ArgumentError, "value has 4 heads.* 3"),
        ({"value": Q.double()}, ArgumentTypeError, "value has dtype torch.float64"),
        ({"value": Q[0]}, ArgumentError, r"value has 4 axes.*\[batch, heads_kv, height, width, v"),
        ({"value": Q[..., :0]}, ArgumentError, "value has shape .*value_dim must be at least 1"),
        ({"dilation": 0}, ArgumentError, "dilation is 0"),
        ({"additional_values": E}, ArgumentError, "attn .*9 taps and 3 additional tokens"),
        ({"additional_values": E[:, :2]}, ArgumentError, r"additional_values .*\[2, 4, tokens, 8"),
    ],
)
def test_av(changes: dict[str, Any], error: type, message: str) -> None:
    refuse(na2d_av, error, message, **{"attn": A, "value": Q, "kernel_size": 3, **changes})
