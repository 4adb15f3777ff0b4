"""Calls that go straight to a kernel, and everything of torch's that must still see a call."""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.fresh_process import run_fresh
from support.kernel_double import Doubles
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import natc
from natc import ops
from natc.dispatch.call import Options
from natc.functional import na1d_av, na1d_qk, na1d_qkvpacked
from natc.ops import direct
from natc.ops.direct import goes_straight
from natc.ops.fused import run_backward
from natc.ops.library import dispatched
from natc.ops.packed import run_backward_packed
from natc.ops.unfused import run_inverse_av, run_sum_rpb

pytestmark = pytest.mark.quick

# Each operator, and the function by which natc calls it, which may go past the dispatcher.
RUN = {
    ops.forward: ops.run_forward,
    ops.forward_lse: ops.run_forward_lse,
    ops.forward_packed: ops.run_forward_packed,
    ops.forward_lse_packed: ops.run_forward_lse_packed,
    ops.backward: run_backward,
    ops.backward_packed: run_backward_packed,
    ops.qk: ops.run_qk,
    ops.av: ops.run_av,
    ops.inverse_av: run_inverse_av,
    ops.sum_rpb: run_sum_rpb,
}
# How many of its first tensors are variables of a backward operator; the others are results.
VARIABLES = {ops.backward: 6, ops.backward_packed: 4}
of_each_operator = pytest.mark.parametrize("operator", list(RUN), ids=str)


def plain(**options: Any) -> Tensor:
    return torch.randn(2, 6, 2, 4, **options)


def tensors_of(operator: Any) -> list[Tensor]:
    """Return every tensor that an operator takes, the same at each call."""
    torch.manual_seed(0)
    rpb, packed, lse = torch.randn(2, 5), torch.randn(2, 6, 3, 2, 4), torch.randn(2, 6, 2)
    # Heads-first, as the unfused operators have it.
    vectors, attn = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 3)
    return {
        ops.forward: [plain(), plain(), plain(), rpb],
        ops.forward_lse: [plain(), plain(), plain(), rpb],
        ops.forward_packed: [packed, rpb],
        ops.forward_lse_packed: [packed, rpb],
        ops.backward: [plain(), lse + 1, plain(), plain(), plain(), rpb, plain(), lse],
        ops.backward_packed: [plain(), lse + 1, packed, rpb, plain(), lse],
        ops.qk: [vectors, vectors + 1, rpb],
        ops.av: [attn, vectors],
        ops.inverse_av: [attn, vectors],
        ops.sum_rpb: [attn],
    }[operator]


def both_ways(operator: Any, tensors: Callable[[], list[Tensor]]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the results of an operator, then of natc's call of it, each on fresh tensors."""
    constants = {
        ops.backward: ((True,) * 4,),
        ops.backward_packed: ((True,) * 2,),
        ops.qk: (0.0,),
        ops.sum_rpb: (4,),
    }
    before = constants.get(operator, ())
    options = Options((3,), (1,), (1,), (False,))
    if "scale" in {argument.name for argument in operator._schema.arguments}:
        options = options._replace(scale=0.5)
    for function in (dispatched(operator), RUN[operator]):
        results = function(*tensors(), *before, options)
        yield results if isinstance(results, tuple) else (results,)


class Tagged(Tensor):
    """A subclass that changes nothing."""


def negative() -> Tensor:
    lazy = torch.randn(2, 6, 2, 4, dtype=torch.complex64).conj().imag
    assert lazy.is_neg()
    return lazy


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
def test_special_tensors_take_the_dispatcher(name: str) -> None:
    assert goes_straight((plain(), None, nn.Parameter(plain())))
    assert not goes_straight((plain(), None, MADE[name]()))


@pytest.mark.parametrize(
    "name", ["a subclass", "a lazy negation", "a lazy zero", "functionalized"]
)
def test_special_tensors_have_equal_results(name: str, doubles: Doubles) -> None:
    tensor = MADE[name]()
    result = natc.na1d(tensor, tensor, tensor, 3)
    if name == "functionalized":
        tensor, result = (torch._from_functional_tensor(t) for t in (tensor, result))
    assert type(result) is type(tensor)
    solid = tensor + 0
    assert not solid.is_neg()
    assert torch.equal(result, natc.na1d(solid, solid, solid, 3))


PRIVATE = (
    "_are_functorch_transforms_active", "_autograd._profiler_enabled", "_dispatch_keys",
    "_get_tracing_state", "_len_torch_dispatch_stack", "_len_torch_function_stack",
)  # fmt: skip


@pytest.mark.parametrize("name", [f"torch._C.{name}" for name in PRIVATE] + [
    "torch._C.DispatchKeySet.raw_repr", "torch.autograd.profiler._is_profiler_enabled",
])  # fmt: skip
def test_each_private_name_that_torch_lacks_switches_the_shortcut_off(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert direct._shortcut()((plain(),))
    monkeypatch.delattr(name)
    assert direct._shortcut() is direct._never


def test_calls_are_right_without_the_private_names_of_torch() -> None:
    program = f"""
import torch
for name in {PRIVATE}:
    holder, _, name = name.rpartition(".")
    delattr(getattr(torch._C, holder) if holder else torch._C, name)
import natc
from natc.ops import direct
x = torch.randn(2, 6, 2, 4, requires_grad=True)
with natc.force_reference():
    output = natc.na1d(x, x, x, 3)
(grad,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
exact = natc.reference.neighborhood_attention(x, x, x, 3)
(expected,) = torch.autograd.grad(exact.sin().sum(), x)
assert direct.goes_straight is direct._never
torch.testing.assert_close(output, exact)
torch.testing.assert_close(grad, expected)
torch.autograd.grad(grad.sum(), x)
print("right")
"""
    assert run_fresh(program).strip() == "right"


def has_gradient(tensor: Tensor) -> bool:
    return tensor.requires_grad


def has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "gradient": lambda t: t.requires_grad_(),
    "tangent": lambda t: forward_ad.make_dual(t, torch.ones_like(t)),
    "class": lambda t: t.as_subclass(Tagged),
}
SHOWS: dict[str, Callable[[Tensor], bool]] = {
    "gradient": has_gradient,
    "tangent": has_tangent,
    "class": lambda t: type(t) is Tagged,
}


@pytest.mark.parametrize("kind", list(CHANGES))
@of_each_operator
def test_one_special_tensor_is_dispatched(operator: Any, kind: str, doubles: Doubles) -> None:
    """A single tensor of the call has a gradient, a tangent or a class."""
    for number in range(len(tensors_of(operator))):

        def tensors(number: int = number) -> list[Tensor]:
            changed = tensors_of(operator)
            changed[number] = CHANGES[kind](changed[number])
            return changed

        # To a backward operator, the forward's results are no variables when a tangent is asked
        # for.
        constant = kind == "tangent" and number >= VARIABLES.get(operator, math.inf)
        with forward_ad.dual_level():
            for results in both_ways(operator, tensors):
                assert SHOWS[kind](results[0]) is not constant, number


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
def test_modes_and_transforms_take_the_dispatcher() -> None:
    x = plain()
    seen = []

    def see(tensor: Tensor) -> Tensor:
        seen.append(goes_straight((tensor,)))
        return tensor * 1

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
    # Also inside a transform that x is no argument of.
    torch.func.vmap(lambda t: t * see(x))(x)
    torch.func.grad(lambda t: (t * see(x)).sum())(x)
    torch.jit.trace(see, x, check_trace=False)
    compiled = torch.compile(lambda t: t + int(goes_straight((t,))), backend="eager")(x)
    assert seen == [False] * 10 and torch.equal(compiled, x)
    # Nothing of it stays behind, and these two are nothing to be seen by.
    assert goes_straight((x,))
    with torch.no_grad():
        assert goes_straight((x,))
    with torch.inference_mode():
        assert goes_straight((x, x * 1))


def test_a_profiler_of_any_thread_takes_the_dispatcher() -> None:
    x = plain()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(goes_straight((x,))))
    with torch.profiler.profile():
        thread.start()
        thread.join()
    config = torch.autograd.ProfilerConfig(
        torch.autograd.ProfilerState.KINETO, False, False, False, False, False,
        torch._C._profiler._ExperimentalConfig(),
    )  # fmt: skip
    activities = {torch.profiler.ProfilerActivity.CPU}
    torch.autograd._prepare_profiler(config, activities)
    torch.autograd._enable_profiler(
        config, activities
    )  # a profiler that torch.profiler does not know
    try:
        seen.append(goes_straight((x,)))
    finally:
        torch.autograd._disable_profiler()
    assert seen == [False, False] and goes_straight((x,))


def test_a_profiler_names_the_operators(doubles: Doubles) -> None:
    x = plain(requires_grad=True)
    with torch.profiler.profile() as profile:
        natc.na1d(x, x, x, 3).sum().backward()
    names = {event.name for event in profile.events()}
    assert {"natc::forward", "natc::backward"} <= names


@of_each_operator
@pytest.mark.parametrize("requires_grad", [False, True])
def test_both_ways_give_the_same(operator: Any, requires_grad: bool, doubles: Doubles) -> None:
    values_of_both, leaves = [], []

    def tensors() -> list[Tensor]:
        leaves[:] = [t.requires_grad_(requires_grad) for t in tensors_of(operator)]
        return leaves

    for results in both_ways(operator, tensors):
        values = list(results)
        assert all(t.requires_grad is requires_grad for t in results)
        if requires_grad:
            # The forward's results, which a backward operator takes, have no gradient.
            wanted = leaves[: VARIABLES.get(operator)]
            total = sum(((t * t).sum() for t in results), torch.zeros(()))
            values += torch.autograd.grad(total, wanted, create_graph=True)
            if operator not in VARIABLES:
                again = sum(((t * t).sum() for t in values[len(results) :]), torch.zeros(()))
                values += torch.autograd.grad(again, wanted)
        values_of_both.append(values)
    assert len(values_of_both[0]) == len(values_of_both[1]) > 0
    assert all(torch.equal(*pair) for pair in zip(*values_of_both, strict=True))


@pytest.mark.parametrize("context", [torch.inference_mode, torch._C._AutoDispatchBelowAutograd])
@of_each_operator
def test_below_autograd_are_no_gradients(operator: Any, context: Any, doubles: Doubles) -> None:
    """Gradients may be enabled there: `torch.enable_grad` says nothing in inference mode."""
    launched = []
    for kind in ("gradient", "tangent"):
        with forward_ad.dual_level():
            tensors = [CHANGES[kind](t) for t in tensors_of(operator)]
            with context(), torch.enable_grad():
                assert not tensors[0].sin().requires_grad
                for results in both_ways(operator, lambda inputs=tensors: inputs):
                    assert not any(map(has_gradient, results))
                    assert not any(map(has_tangent, results))
                    launched.append(doubles.operations)
                    doubles.calls.clear()
    # On kernels; without a logsumexp unless the operator returns one.
    assert launched == [launched[0]] * 4
    first = "delta" if operator in VARIABLES else operator._schema.name.removeprefix("natc::")
    assert launched[0][0] == first


@pytest.mark.parametrize("name", ["dilation", "stride", "is_causal"])
def test_options_are_those_of_the_call(name: str, doubles: Doubles) -> None:
    """A list that is changed before the gradient is made changes nothing of it."""
    after: dict[str, Any] = {"dilation": 2, "stride": 2, "is_causal": True}
    gradients = []
    for change in (False, True):
        torch.manual_seed(0)
        x = plain(requires_grad=True)
        options: dict[str, Any] = {"dilation": [1], "stride": [1], "is_causal": [False]}
        output = natc.na1d(x, x, x, [3], **options)
        if change:
            options[name][0] = after[name]
        output.square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_integers_of_any_kind_are_options(libraries: Any) -> None:
    Size = enum.IntEnum("Size", {"small": 3, "two": 2})
    x = plain()
    with natc.force_reference():
        expected = natc.na1d(x, x, x, 3, dilation=2)
        for size, two in ((Size.small, Size.two), ([Size.small], (Size.two,))):
            assert torch.equal(natc.na1d(x, x, x, size, dilation=two), expected)


ASKED: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    # The call, and how often it and its gradient ask.
    "fused": (lambda x: natc.na1d(x, x, x, 3), 2),
    "fused, lse": (lambda x: natc.na1d(x, x, x, 3, return_lse=True)[0], 2),
    "any rank": (lambda x: natc.neighborhood_attention(x, x, x, 3), 2),
    "tokens": (lambda x: natc.na1d(x, x, x, 3, additional_keys=x, additional_values=x), 2),
    "packed": (lambda x: na1d_qkvpacked(torch.stack((x, x, x), -3), 3), 2),
    "qk": (lambda x: na1d_qk(x, x, 3, rpb=x[0, :, 0, :1].expand(6, 5)), 4),
    "av": (lambda x: na1d_av(x[..., :3], x, 3), 3),
}


@pytest.mark.parametrize("name", list(ASKED))
def test_is_not_dispatched(name: str, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of forward and backward: else the way would be there and nobody on it."""
    asked: list[bool] = []

    def ask(tensors: Any) -> bool:
        asked.append(goes_straight(tensors))
        return asked[-1]

    def dispatched(*_: Any) -> Any:
        raise AssertionError("dispatched")

    monkeypatch.setattr("natc.ops.library.goes_straight", ask)
    function, times = ASKED[name]
    with torch.library._scoped_library("natc", "IMPL") as library:
        for operator in RUN:
            library.impl(operator._schema.name, dispatched, "AutogradCPU")
        with pytest.raises(AssertionError, match="dispatched"):
            ops.av(torch.randn(2, 2, 6, 3), torch.randn(2, 2, 6, 4), (3,), (1,), (1,), (False,))
        function(plain())
        assert asked == [True]
        asked.clear()
        function(plain(requires_grad=True)).sum().backward()
        assert asked == [True] * times
