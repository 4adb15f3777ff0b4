"""What torch wraps around operators: modes, hooks, parametrizations; and layouts refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.kernel_double import Doubles
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import natc
from natc import ops
from natc.errors import ArgumentTypeError
from natc.nn import NeighborhoodAttention1D


class Dispatched(TorchDispatchMode):
    """Notes each operator, and whether gradients were enabled at any operator of natc's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.grad_enabled = False

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.seen.append(function)
        self.grad_enabled |= function.namespace == "natc" and torch.is_grad_enabled()
        return function(*arguments, **(options or {}))


class Called(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.seen.append(function)
        return function(*arguments, **(options or {}))


def leaves() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 6, 2, 4, requires_grad=True), torch.randn(2, 5, requires_grad=True)


def everything(x: Tensor, rpb: Tensor) -> Tensor:
    output, lse = natc.na1d(x, x, x, 3, rpb=rpb, return_lse=True)
    packed = natc.functional.na1d_qkvpacked(torch.stack((x, x, x), -3), 3, rpb=rpb)
    heads_first = x.movedim(-2, 1)
    attn = natc.functional.na1d_qk(heads_first, heads_first, 3, rpb=rpb)
    half = natc.functional.na1d_av(attn, heads_first, 3)
    return output.sum() + lse.sum() + packed.sum() + half.sum()


def test_a_dispatch_mode_sees_every_operator(doubles: Doubles) -> None:
    x, rpb = leaves()
    with Dispatched() as mode:
        everything(x, rpb).backward()
    ours = {operator for operator in mode.seen if operator.namespace == "natc"}
    # A call that needs a gradient runs what returns the logsumexp.
    assert ours == {
        ops.forward_lse, ops.forward_lse_packed, ops.backward, ops.backward_packed, ops.qk, ops.av,
        ops.inverse_av, ops.sum_rpb,
    }  # fmt: skip
    with Dispatched() as mode, torch.no_grad():
        natc.na1d(x, x, x, 3)
        natc.functional.na1d_qkvpacked(torch.stack((x, x, x), -3), 3)
    ours = {operator for operator in mode.seen if operator.namespace == "natc"}
    assert ours == {ops.forward, ops.forward_packed} and not mode.grad_enabled


def test_a_function_mode_sees_the_operators(doubles: Doubles) -> None:
    x, rpb = leaves()
    with Called() as mode:
        everything(x, rpb)
    assert {ops.forward_lse, ops.forward_packed, ops.qk, ops.av} <= set(mode.seen)


def test_modes_change_no_bit(doubles: Doubles) -> None:
    gradients = []
    leaf = leaves()
    for mode in (None, Dispatched(), Called()):
        tensors = [t.detach().clone().requires_grad_() for t in leaf]
        if mode is None:
            everything(*tensors).backward()
        else:
            with mode:
                everything(*tensors).backward()
        gradients.append([t.grad for t in tensors])
    for in_mode in gradients[1:]:
        assert all(torch.equal(*pair) for pair in zip(in_mode, gradients[0], strict=True))


def test_no_grad_and_inference_mode(doubles: Doubles) -> None:
    x, rpb = leaves()
    with torch.no_grad():
        assert not everything(x, rpb).requires_grad
    with torch.inference_mode():
        inference = torch.randn(2, 6, 2, 4)
        result = natc.na1d(inference, inference, inference, 3, rpb=rpb)
        assert result.is_inference()
        with torch.inference_mode(False), pytest.raises(RuntimeError, match="[Ii]nference"):
            natc.na1d(inference, inference, x, 3)  # It would have to be kept for the gradient.
    with torch.no_grad(), torch.enable_grad():
        assert natc.na1d(x, x, x, 3).requires_grad


def test_hooks_of_tensors_and_modules(doubles: Doubles) -> None:
    module = NeighborhoodAttention1D(8, 2, 3)
    seen: list[str] = []
    module.register_forward_pre_hook(lambda *_: seen.append("before"))
    module.register_forward_hook(lambda m, inputs, result: result * 2)
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    x = torch.randn(2, 6, 8, requires_grad=True)
    plain = module.forward(x)
    output = module(x)
    assert torch.equal(output, plain * 2)
    assert module.rpb is not None
    module.rpb.register_hook(lambda grad: grad * 0)
    module.rpb.register_post_accumulate_grad_hook(lambda _: seen.append("rpb"))
    output.sum().backward()
    assert seen == ["before", "rpb", "backward"] and not module.rpb.grad.any()


def test_saved_tensors_may_be_packed_away(doubles: Doubles) -> None:
    x, rpb = leaves()
    wanted = torch.autograd.grad(everything(x, rpb), (x, rpb))
    with torch.autograd.graph.save_on_cpu():
        result = everything(x, rpb)
    for gradient, expected in zip(torch.autograd.grad(result, (x, rpb)), wanted, strict=True):
        assert torch.equal(gradient, expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(), torch.from_numpy):
        result = everything(x, rpb)
    for gradient, expected in zip(torch.autograd.grad(result, (x, rpb)), wanted, strict=True):
        assert torch.equal(gradient, expected)


def test_parametrized_and_pruned_modules(doubles: Doubles) -> None:
    class Antisymmetric(nn.Module):
        def forward(self, rpb: Tensor) -> Tensor:
            return rpb - rpb.flip(-1)

    module = NeighborhoodAttention1D(8, 2, 3)
    x = torch.randn(2, 6, 8)
    nn.utils.parametrize.register_parametrization(module, "rpb", Antisymmetric())
    parametrizations.weight_norm(module.qkv)
    prune.l1_unstructured(module.proj, "weight", 0.5)
    module(x).square().sum().backward()
    assert module.parametrizations.rpb.original.grad.abs().max() > 0  # type: ignore[union-attr]
    assert module.qkv.parametrizations.weight.original1.grad is not None  # type: ignore[union-attr]
    assert (module.proj.weight_orig.grad[module.proj.weight == 0] == 0).all()
    plain = NeighborhoodAttention1D(8, 2, 3)
    nn.utils.parametrize.remove_parametrizations(module, "rpb")
    nn.utils.parametrize.remove_parametrizations(module.qkv, "weight")
    prune.remove(module.proj, "weight")
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(plain(x), module(x))


def test_an_exchanged_projection_is_used(doubles: Doubles) -> None:
    """What quantizes a network exchanges its linear layers."""

    class Rounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            steps = self.weight.abs().max() / 127
            return nn.functional.linear(x, (self.weight / steps).round() * steps, self.bias)

    module = NeighborhoodAttention1D(8, 2, 3)
    x = torch.randn(2, 6, 8)
    exact = module(x)
    for name in ("qkv", "proj"):
        rounded_layer = Rounded(*reversed(getattr(module, name).weight.shape))
        rounded_layer.load_state_dict(getattr(module, name).state_dict())
        setattr(module, name, rounded_layer)
    rounded = module(x)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.05)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_nested_tensors_are_refused_by_name(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.randn(5, 2, 4)] * 2, layout=layout)
    dense = torch.randn(2, 5, 2, 4)
    calls: dict[str, Any] = {
        "query": lambda t: natc.na1d(t, dense, dense, 3),
        "key": lambda t: natc.na1d(dense, t, dense, 3),
        "value": lambda t: natc.na1d(dense, dense, t, 3),
        "rpb": lambda t: natc.na1d(dense, dense, dense, 3, rpb=t),
        "additional_keys": lambda t: natc.functional.na1d_qk(dense, dense, 3, additional_keys=t),
        "attn": lambda t: natc.functional.na1d_av(t, dense, 3),
        "qkv": lambda t: natc.functional.na1d_qkvpacked(t, 3),
        "outputs[0]": lambda t: natc.merge_attentions([t], [dense]),
        "lses[0]": lambda t: natc.merge_attentions([dense], [t]),
        "x": NeighborhoodAttention1D(4, 2, 3),
    }
    for name, call in calls.items():
        with pytest.raises(ArgumentTypeError) as error:
            call(nested)
        assert str(error.value).startswith(f"{name} is a nested tensor, layout {layout};")


def test_tensors_that_are_not_dense_are_refused_by_name() -> None:
    sparse = torch.eye(4).reshape(1, 4, 1, 4).to_sparse()
    with pytest.raises(ArgumentTypeError, match="qkv has layout torch.sparse_coo"):
        natc.functional.na1d_qkvpacked(sparse, 3)
    with pytest.raises(ArgumentTypeError, match="query has dtype torch.qint8"):
        low = torch.quantize_per_tensor(torch.randn(1, 4, 1, 4), 0.1, 0, torch.qint8)
        natc.na1d(low, low, low, 3)
