"""The operators inside torch: tracing, gradients, transforms, and when the reference steps in."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.c_library import HEAD_DIM, KERNEL_SIZE, SPECS, LibraryDirectory
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import natc
from natc import runtime
from natc.checks.inputs import Inputs, make_inputs
from natc.dispatch.fallback import reference_is_forced
from natc.errors import NotCoveredError
from natc.reference import neighborhood_attention

SHAPE = (2, 5, 6, 2, HEAD_DIM)
OPTIONS = ((KERNEL_SIZE, KERNEL_SIZE), (1, 1), (2, 1), (False, False), 0.3)


def attend(*tensors: Any, **options: Any) -> Any:
    query, key, value, rpb = tensors
    return natc.na2d(query, key, value, KERNEL_SIZE, rpb=rpb, return_lse=True, **options)


def expected(*tensors: Any, **options: Any) -> Any:
    query, key, value, rpb = tensors
    return neighborhood_attention(
        query, key, value, KERNEL_SIZE, rpb=rpb, return_lse=True, **options
    )


def loss_of(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def loss(*tensors: Any) -> Tensor:
        output, lse = function(*tensors)
        return output.square().sum() + lse.sin().sum()

    return loss


def with_rpb(**options: Any) -> Inputs:
    return make_inputs(SHAPE, kernel_size=KERNEL_SIZE, **options)


@pytest.fixture
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", natc.NatcFallbackWarning)
        yield


# What torch asks of an operator


def test_a_compiled_graph_is_whole_and_takes_other_shapes(kernels: LibraryDirectory) -> None:

    def dilated(*tensors: Any) -> Any:
        return attend(*tensors, dilation=max(tensors[0].shape[1] // KERNEL_SIZE, 1))

    compiled = torch.compile(dilated, fullgraph=True, backend="aot_eager", dynamic=True)
    for height, width in ((5, 6), (7, 9), (12, 4)):
        inputs = make_inputs((2, height, width, 2, HEAD_DIM), kernel_size=KERNEL_SIZE)
        torch.testing.assert_close(compiled(*inputs), dilated(*inputs), rtol=0, atol=0)
    assert kernels.calls(SPECS[True]) == 6


def test_flops_are_counted(kernels: LibraryDirectory, quiet: None) -> None:
    inputs = with_rpb(requires_grad=True)
    products = inputs.query.numel() * KERNEL_SIZE**2
    with FlopCounterMode(display=False) as counter:
        output, lse = attend(*inputs)
    assert counter.get_total_flops() == 4 * products
    with FlopCounterMode(display=False) as counter:
        (output.sum() + lse.sum()).backward()
    assert counter.get_total_flops() == 10 * products
    query, key, value = (t.movedim(-2, 1) for t in inputs[:3])
    with FlopCounterMode(display=False) as counter:
        attn = natc.functional.na2d_qk(query, key, KERNEL_SIZE)
        natc.functional.na2d_av(attn, value, KERNEL_SIZE)
    assert counter.get_total_flops() == 4 * products
    with FlopCounterMode(display=False) as counter:
        natc.functional.na2d_qkvpacked(torch.stack(inputs[:3], -3), KERNEL_SIZE)
    assert counter.get_total_flops() == 4 * products


def test_flops_of_fewer_channels_and_gradients(libraries: LibraryDirectory, quiet: None) -> None:
    query, key, value, _ = make_inputs((2, 9, 4, 5), heads_kv=2, value_dim=3)
    of_channel = 2 * 2 * 9 * 4 * 3
    with FlopCounterMode(display=False) as counter:
        natc.na1d(query, key, value.requires_grad_(), 3).sum().backward()
    # Forward; the weights again and d_value.
    assert counter.get_total_flops() == of_channel * (5 + 3 + 5 + 3)


# Gradients


@pytest.mark.parametrize("name", ["query", "key", "value", "rpb", None])
def test_gradients(kernels: LibraryDirectory, quiet: None, name: str | None) -> None:
    gradients = []
    for function in (attend, expected):
        inputs = with_rpb()
        for field, tensor in inputs._asdict().items():
            tensor.requires_grad_(name in (None, field))
        loss_of(function)(*inputs).backward()
        gradients.append([tensor.grad for tensor in inputs if tensor is not None])
    for actual, wanted in zip(*gradients, strict=True):
        assert (actual is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
    assert kernels.calls(SPECS[True]) == 1


def test_one_tensor_may_be_query_key_and_value(kernels: LibraryDirectory, quiet: None) -> None:
    derivatives = []
    for function in (attend, expected):
        tensor = make_inputs(SHAPE).query.requires_grad_()
        loss = loss_of(function)(tensor, tensor, tensor, None)
        (first,) = torch.autograd.grad(loss, tensor, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), tensor)
        derivatives.append((first.detach(), second))
    torch.testing.assert_close(derivatives[0], derivatives[1], rtol=1e-3, atol=1e-3)
    assert kernels.calls(SPECS[False]) == 1


def test_forward_mode(kernels: LibraryDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_STRICT", "1")  # The reference is there for it by design.
    inputs, tangents = tuple(with_rpb()), tuple(with_rpb(seed=1))
    wanted = torch.func.jvp(expected, inputs, tangents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(torch.func.jvp(attend, inputs, tangents), wanted)
        forward_ad = torch.autograd.forward_ad
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(inputs, tangents, strict=True)]
            results = [forward_ad.unpack_dual(result) for result in attend(*duals)]
            alone, _ = forward_ad.unpack_dual(natc.na2d(*duals[:3], KERNEL_SIZE, rpb=duals[3]))
            # A tangent of one tensor, and none.
            only_query = forward_ad.unpack_dual(attend(duals[0], *inputs[1:])[0]).tangent
            none = forward_ad.unpack_dual(attend(*inputs)[0]).tangent
    torch.testing.assert_close(tuple(d.primal for d in results), wanted[0])
    torch.testing.assert_close(tuple(d.tangent for d in results), wanted[1])
    torch.testing.assert_close(alone, wanted[0][0])
    zeros = tuple(torch.zeros_like(t) for t in tangents[1:])
    only = torch.func.jvp(expected, inputs, (tangents[0], *zeros))[1][0]
    torch.testing.assert_close(only_query, only)
    assert none is None
    assert kernels.calls(SPECS[True]) == 1


@pytest.mark.parametrize("inner", [torch.func.grad, torch.func.jacrev], ids=["grad", "jacrev"])
def test_jvp_of_grad(kernels: LibraryDirectory, quiet: None, inner: Callable[..., Any]) -> None:
    inputs, tangents = tuple(with_rpb()), tuple(with_rpb(seed=1))
    tangents_of_both = [
        torch.func.jvp(inner(loss_of(f), argnums=(0, 1, 2, 3)), inputs, tangents)
        for f in (attend, expected)
    ]
    torch.testing.assert_close(tangents_of_both[0], tangents_of_both[1], rtol=1e-4, atol=1e-4)


def test_reverse_over_forward(kernels: LibraryDirectory) -> None:
    inputs, tangents = tuple(with_rpb()), tuple(with_rpb(seed=1))

    def of(function: Any) -> Any:
        def slope(*primals: Any) -> Tensor:
            return torch.func.jvp(loss_of(function), primals, tangents)[1]

        return torch.func.grad(slope, argnums=(0, 1, 2, 3))(*inputs)

    torch.testing.assert_close(of(attend), of(expected), rtol=1e-4, atol=1e-4)


def test_hessian_of_an_unfused_call(libraries: LibraryDirectory, quiet: None) -> None:
    tensors = tuple(t[:, :2].movedim(-2, 1).double() for t in make_inputs((1, 4, 1, 2))[:3])

    def unfused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attn = natc.functional.na1d_qk(query, key, 2)
        return natc.functional.na1d_av(attn.softmax(-1), value, 2).sin().sum()

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = neighborhood_attention(
            *(t.movedim(1, -2) for t in (query, key, value)), 2, scale=1.0
        )
        return output.sin().sum()

    everything = (0, 1, 2)
    for hessian in (
        lambda f: torch.func.jacfwd(torch.func.jacrev(f, everything), everything),
        lambda f: torch.func.jacrev(torch.func.jacrev(f, everything), everything),
        lambda f: torch.func.jacfwd(torch.func.jacfwd(f, everything), everything),
    ):
        torch.testing.assert_close(hessian(unfused)(*tensors), hessian(plain)(*tensors))


# Transforms


@pytest.mark.parametrize(
    ("in_dims", "calls"),
    [
        ((0, 0, 0, None), 1),
        ((0, None, 2, None), 1),
        ((1, 4, 0, 0), 3),
        ((None, None, None, 1), 3),
    ],
)
def test_vmap(kernels: LibraryDirectory, in_dims: tuple[Any, ...], calls: int) -> None:
    tensors = []
    for tensor, dim in zip(with_rpb(), in_dims, strict=True):
        assert tensor is not None
        stacked = torch.stack((tensor, tensor * 0.5, tensor + 0.1), dim=dim or 0)
        tensors.append(tensor if dim is None else stacked)
    actual = torch.vmap(attend, in_dims)(*tensors)
    assert kernels.calls(SPECS[True]) == calls
    wanted = torch.vmap(expected, in_dims)(*tensors)
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


# When the reference steps in


def test_one_warning_for_a_missing_kernel(libraries: LibraryDirectory) -> None:
    query, key, value, _ = make_inputs((1, 4, 4, 1, 32))
    command = "natc build --kernel 5 --target llvm"
    with pytest.warns(natc.NatcFallbackWarning, match=command) as caught:
        for _ in range(3):
            natc.na2d(query, key, value, 5)
            natc.na2d(query[:, :2], key[:, :2], value[:, :2], 5, dilation=2)
    assert len(caught) == 1
    with pytest.warns(natc.NatcFallbackWarning, match="natc build --kernel 7 "):
        natc.na2d(query, key, value, 7)
    runtime.clear()
    with pytest.warns(natc.NatcFallbackWarning, match=command):
        natc.na2d(query, key, value, 5)


def test_a_warning_as_an_error_is_raised_each_time(libraries: LibraryDirectory) -> None:
    query, key, value, _ = make_inputs(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", natc.NatcFallbackWarning)
        for _ in range(2):
            with pytest.raises(natc.NatcFallbackWarning):
                natc.na2d(query, key, value, KERNEL_SIZE)


def test_one_warning_for_every_backward(kernels: LibraryDirectory) -> None:
    text = "no kernel covers delta of na2d_k3_d8_float32_rpb on cpu; .*\n*.*natc build --kernel 3 "
    with pytest.warns(natc.NatcFallbackWarning, match=text) as caught:
        for _ in range(2):
            loss_of(attend)(*with_rpb(requires_grad=True)).backward()
        inputs = with_rpb()
        attend(inputs.query, inputs.key, inputs.value.requires_grad_(), None)[0].sum().backward()
    assert len(caught) == 2
    assert "delta of na2d_k3_d8_float32 on cpu" in str(caught[1].message)
    assert caught[0].filename == caught[1].filename == __file__


def test_one_warning_for_forward_and_gradients(libraries: LibraryDirectory) -> None:
    with pytest.warns(natc.NatcFallbackWarning) as caught:
        loss_of(attend)(*with_rpb(requires_grad=True)).backward()
    assert len(caught) == 1


def test_strict_refusals(kernels: LibraryDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_STRICT", "1")
    inputs = with_rpb(requires_grad=True)
    output, _ = attend(*inputs)
    with pytest.raises(NotCoveredError, match="no kernel covers delta of na2d_k3_d8_float32_rpb"):
        output.sum().backward()
    tensors = make_inputs((1, 4, 4, 1, 32))[:3]
    for _ in range(2):
        with pytest.raises(NotCoveredError) as error:
            natc.na2d(*tensors, 7)
    for part in (
        "no kernel covers forward of na2d_k7_d32_float32 on cpu (llvm-",
        f"searched {kernels.path}",
        "cache/lib (does not exist)",
        f"implements {SPECS[False]}",
        "build it: natc build --kernel 7 --target llvm",
        "NATC_STRICT",
    ):
        assert part in str(error.value)
    with pytest.raises(NotCoveredError, match="kernel_size 64 is not supported"):
        natc.na2d(*tensors, 64)
    with pytest.raises(NotCoveredError, match="(?s)na2d_k7_d32_float64.*--dtype float64"):
        natc.na2d(*(tensor.double() for tensor in tensors), 7)
    heads_first = [t.movedim(-2, 1) for t in tensors]
    with pytest.raises(NotCoveredError, match="no kernel covers qk of na2d_k7_d32_float32 on cpu"):
        natc.functional.na2d_qk(*heads_first[:2], 7)
    with pytest.raises(NotCoveredError, match="no kernel covers av of na2d_k7_d32_float32 on cpu"):
        natc.functional.na2d_av(torch.zeros(1, 1, 4, 4, 49), heads_first[2], 7)


def test_force_reference(kernels: LibraryDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_STRICT", "1")
    inputs = with_rpb(requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with natc.force_reference():
            output, lse = attend(*inputs)
            with natc.force_reference():
                pass
            attend(*inputs)
        # What ran on the reference by request also goes back through it.
        (output.sum() + lse.sum()).backward()
    torch.testing.assert_close((output, lse), expected(*inputs), rtol=0, atol=0)
    assert kernels.calls(SPECS[True]) == 0
    attend(*inputs)
    assert kernels.calls(SPECS[True]) == 1


def test_force_reference_binds_one_thread(kernels: LibraryDirectory) -> None:
    inputs = with_rpb()
    with natc.force_reference():
        worker = threading.Thread(target=lambda: attend(*inputs))
        worker.start()
        worker.join()
    assert not reference_is_forced()
    assert kernels.calls(SPECS[True]) == 1
