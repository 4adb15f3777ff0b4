"""`torch.library.opcheck` of every operator, on kernels and on the reference, in odd shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.kernel_double import Doubles
from torch import Tensor

import natc
from natc import ops

# kernel_size, dilation, stride, is_causal, scale
ONE = ((3,), (2,), (2,), (True,), 0.3)
TWO = ((3, 3), (1, 1), (2, 1), (False, False), 0.3)
THREE = ((2, 3, 4), (1, 3, 2), (1, 2, 1), (False, True, False), -1.5)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad)


def calls(case: str, grad: bool) -> dict[str, tuple[Any, ...]]:
    """Arguments for every operator."""
    spatial, options, dtype = {
        "1D": ((5,), ONE, torch.bfloat16),
        "2D": ((5, 6), TWO, torch.float32),
        "3D": ((3, 1, 5), THREE, torch.float32),
        "larger than the map": ((2,), ((7,), (1,), (1,), (False,), 0.3), torch.float64),
    }[case]
    acc = torch.float64 if dtype is torch.float64 else torch.float32
    kernel_size = options[0]
    offsets = [2 * size - 1 for size in kernel_size]
    rpb = drawn(4, *offsets, dtype=acc, grad=grad) if case != "1D" else None
    query = drawn(3, *spatial, 4, 5, dtype=dtype, grad=grad)
    key = drawn(3, *spatial, 2, 5, dtype=dtype, grad=grad)
    value = drawn(3, *spatial, 2, 7, dtype=dtype, grad=grad)
    qkv = drawn(3, *spatial, 3, 4, 5, dtype=dtype, grad=grad)
    with torch.no_grad(), natc.force_reference():
        output, lse = ops.forward_lse(query, key, value, rpb, *options)
    d_output, d_lse = drawn(*output.shape, dtype=dtype, grad=grad), torch.ones_like(lse)
    wanted = [True, True, True, rpb is not None]
    heads_first = [t.detach().movedim(-2, 1).requires_grad_(grad) for t in (query, key, value)]
    taps = math.prod(kernel_size)
    attn = drawn(3, 4, *spatial, taps, dtype=dtype, grad=grad)
    where = options[:4]
    return {
        "forward": (query, key, value, rpb, *options),
        "forward_lse": (query, key, value, rpb, *options),
        "forward_packed": (qkv, rpb, *options),
        "forward_lse_packed": (qkv, rpb, *options),
        "backward": (d_output, d_lse, query, key, value, rpb, output, lse, wanted, *options),
        "backward_packed": (
            *upstream_of(qkv, rpb, options, grad),
            [True, rpb is not None],
            *options,
        ),
        "backward for key": (
            d_output,
            None,
            query,
            key,
            value,
            None,
            output,
            lse,
            [False, True, False, False],
            *options,
        ),
        "qk": (*heads_first[:2], rpb, -math.inf, *where),
        "qk filled with 0": (*heads_first[:2], None, 0.0, *where),
        "av": (attn, heads_first[2], *where),
        "inverse_av": (attn, heads_first[0], *where),
        "sum_rpb": (attn, 5, *where),
    }


def upstream_of(
    qkv: Tensor, rpb: Tensor | None, options: tuple[Any, ...], grad: bool
) -> tuple[Tensor | None, ...]:
    """Return the tensors of `backward_packed`."""
    with torch.no_grad(), natc.force_reference():
        output, lse = ops.forward_lse_packed(qkv, rpb, *options)
    d_output = torch.randn_like(output).requires_grad_(grad)
    return d_output, torch.ones_like(lse), qkv, rpb, output, lse


OPERATORS = [name for name in ops.__all__ if isinstance(getattr(ops, name), torch._ops.OpOverload)]
CALLS = [*OPERATORS, "backward for key", "qk filled with 0"]


def check(name: str, case: str, grad: bool) -> None:
    result = torch.library.opcheck(getattr(ops, name.split()[0]), calls(case, grad)[name])
    assert list(result.values()) == ["SUCCESS"] * 4


def test_every_operator_is_here() -> None:
    assert set(CALLS) == set(calls("1D", False))
    # A package from the hub that another test of this process loaded has operators of its own.
    names = torch._C._dispatch_get_all_op_names()
    defined = {name for name in names if name.startswith("natc::")}
    assert defined == {f"natc::{name}" for name in OPERATORS}


# Torch traces the gradients of `backward` for ten seconds. They are always the reference's, so two
# calls are checked: with every tensor, and with few.
@pytest.mark.parametrize("case", ["1D", "2D", "3D", "larger than the map"])
@pytest.mark.parametrize("name", CALLS)
def test_on_kernels(doubles: Doubles, name: str, case: str) -> None:
    left_out = {"1D": "backward", "larger than the map": "backward for key"}
    check(name, case, grad=case in left_out and name != left_out[case])
    assert doubles.calls


@pytest.mark.parametrize(("case", "grad"), [("2D", False), ("3D", True)])
@pytest.mark.parametrize("name", CALLS)
def test_on_the_reference(name: str, case: str, grad: bool) -> None:
    with natc.force_reference():
        check(name, case, grad and not name.startswith("backward"))


@pytest.mark.parametrize("name", OPERATORS)
def test_empty_batches(name: str) -> None:
    arguments = tuple(
        x[:0].detach() if isinstance(x, Tensor) and x.shape[0] == 3 else x
        for x in calls("3D", False)[name]
    )
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    result = torch.library.opcheck(getattr(ops, name), arguments, test_utils=tests)
    assert list(result.values()) == ["SUCCESS"] * 3
