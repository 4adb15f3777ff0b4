"""Calls that go straight to a kernel, and everything of torch's that must still see a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_double import Doubles
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import natc
from natc import ops
from natc.ops.direct import goes_straight

# The operator, and the function by which natc calls it, which may go past the dispatcher.
PAIRS = [
    (ops.forward, ops.run_forward),
    (ops.forward_lse, ops.run_forward_lse),
    (ops.forward_packed, ops.run_forward_packed),
    (ops.forward_lse_packed, ops.run_forward_lse_packed),
]
OPTIONS = ((3,), (1,), (1,), (False,), 0.5)


def plain(**options: Any) -> Tensor:
    return torch.randn(2, 6, 2, 4, **options)


class Tagged(Tensor):
    """A subclass that changes nothing."""


def negative() -> Tensor:
    found = torch.randn(2, 6, 2, 4, dtype=torch.complex64).conj().imag
    assert found.is_neg()
    return found


def zero() -> Tensor:
    return torch._efficientzerotensor((2, 6, 2, 4))


MADE: dict[str, Callable[[], Tensor]] = {
    "a subclass": lambda: plain().as_subclass(Tagged),
    "a lazy negation": negative,
    "a lazy zero": zero,
    "no memory": lambda: plain(device="meta"),
    "functionalized": lambda: torch._to_functional_tensor(plain()),
    "sparse": lambda: torch.eye(4).to_sparse(),
}


@pytest.mark.parametrize("name", list(MADE))
def test_a_tensor_that_is_not_plain_takes_the_dispatcher(name: str) -> None:
    assert goes_straight((plain(), None, nn.Parameter(plain())))
    assert not goes_straight((plain(), None, MADE[name]()))


@pytest.mark.parametrize("name", ["a lazy negation", "a lazy zero", "functionalized"])
def test_a_tensor_that_is_not_plain_has_the_same_result(name: str, doubles: Doubles) -> None:
    given = MADE[name]()
    result = natc.na1d(given, given, given, 3)
    if name == "functionalized":
        given, result = (torch._from_functional_tensor(t) for t in (given, result))
    solid = given + 0
    assert not solid.is_neg()
    assert torch.equal(result, natc.na1d(solid, solid, solid, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
def test_what_is_around_a_call_takes_the_dispatcher() -> None:
    x = plain()
    seen = []

    def see(given: Tensor) -> Tensor:
        seen.append(goes_straight((given,)))
        return given * 1

    with FlopCounterMode(display=False):
        see(x)
    with BaseTorchFunctionMode():
        see(x)
    with torch.device("cpu"):
        see(x)
    with torch.profiler.profile():
        see(x)
    with torch.autograd.profiler.profile():
        see(x)
    torch.func.vmap(see)(x)
    torch.func.grad(lambda t: see(t).sum())(x)
    torch.jit.trace(see, x, check_trace=False)
    torch._dynamo.reset()
    found = torch.compile(lambda t: t + int(goes_straight((t,))), backend="eager")(x)
    assert seen == [False] * 8 and torch.equal(found, x)
    # Nothing of it stays behind, and these two are nothing to be seen by.
    assert goes_straight((x,))
    with torch.no_grad():
        assert goes_straight((x,))
    with torch.inference_mode():
        assert goes_straight((x, x * 1))


def test_a_profiler_names_the_operators(doubles: Doubles) -> None:
    x = plain(requires_grad=True)
    with torch.profiler.profile() as profile:
        natc.na1d(x, x, x, 3).sum().backward()
    names = {event.name for event in profile.events()}
    assert {"natc::forward", "natc::backward"} <= names


@pytest.mark.parametrize("operator, run", PAIRS, ids=[str(pair[0]) for pair in PAIRS])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_both_ways_give_the_same(
    operator: Any, run: Any, requires_grad: bool, doubles: Doubles
) -> None:
    torch.manual_seed(0)
    packed = "packed" in str(operator)
    made = [torch.randn(2, 6, 3, 2, 4)] if packed else [plain() for _ in range(3)]
    made.append(torch.randn(2, 5))
    found = []
    for function in (operator, run):
        leaves = [t.clone().requires_grad_(requires_grad) for t in made]
        results = function(*leaves, *OPTIONS)
        results = results if isinstance(results, tuple) else (results,)
        values = list(results)
        assert all(t.requires_grad is requires_grad for t in results)
        if requires_grad:
            total = sum(((t * t).sum() for t in results), torch.zeros(()))
            values += torch.autograd.grad(total, leaves, create_graph=True)
            again = sum(((t * t).sum() for t in values[len(results) :]), torch.zeros(()))
            values += torch.autograd.grad(again, leaves)
        found.append(values)
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_call_that_goes_straight_is_not_dispatched(
    doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of forward and backward: else the way would be there and nobody on it."""
    asked: list[bool] = []

    def ask(tensors: Any) -> bool:
        asked.append(goes_straight(tensors))
        return asked[-1]

    monkeypatch.setattr("natc.ops.library.goes_straight", ask)
    x = plain(requires_grad=True)
    natc.na1d(x, x, x, 3).sum().backward()
    assert asked == [True, True]
    asked.clear()
    natc.functional.na1d_qkvpacked(torch.randn(2, 6, 3, 2, 4), 3)
    assert asked == [True]
