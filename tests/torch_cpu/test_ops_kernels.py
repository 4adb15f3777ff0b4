"""Which kernels a call launches, with which tensors, and how it combines their results.

The kernels are doubles in plain PyTorch; see `kernel_double`. Compiled kernels are tested in
tests/compiler.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.kernel_double import Doubles
from support.layouts import misaligned, noncontiguous
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import natc
from natc.checks.inputs import make_inputs
from natc.dispatch import fused_backward, launch
from natc.errors import ArgumentError, NotCoveredError
from natc.reference import neighborhood_attention
from natc.reference.attention import neighborhood_logits, neighborhood_sum

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("error::natc.dispatch.fallback.NatcFallbackWarning"),
]

CASES = [
    # shape of the query, heads_kv, value_dim, options
    ((2, 9, 4, 5), 2, 3, {"kernel_size": 4, "stride": 3}),
    ((2, 9, 4, 5), 1, 5, {"kernel_size": 3, "is_causal": True, "dilation": 2}),
    ((2, 5, 6, 2, 3), 2, 3, {"kernel_size": (3, 5), "dilation": (1, 4)}),
    ((1, 4, 3, 5, 4, 2), 2, 3, {"kernel_size": (3, 2, 4), "is_causal": (False, True, True)}),
    ((1, 3, 4, 3, 2, 2), 2, 2, {"kernel_size": 3, "stride": (2, 1, 3), "scale": 0.3}),
]


def tensors_of(
    shape: tuple[int, ...], heads_kv: int, value_dim: int, kernel_size: Any, rpb: bool = True
) -> list[Tensor]:
    inputs = make_inputs(
        shape, heads_kv=heads_kv, value_dim=value_dim, kernel_size=kernel_size if rpb else None
    )
    return [t.double().requires_grad_() for t in inputs if t is not None]


def fused(tensors: list[Tensor], function: Callable[..., Any], options: Any) -> tuple[Any, ...]:
    """Results and gradients."""
    rpb = tensors[3] if len(tensors) > 3 else None
    output, lse = function(*tensors[:3], **options, rpb=rpb, return_lse=True)
    loss = output.sin().sum() + lse.cos().sum()
    return output.detach(), lse.detach(), *torch.autograd.grad(loss, tensors)


@pytest.fixture(params=["together", "by batch", "by heads of keys", "by heads of queries"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """How large a tensor a kernel takes: called with the tensors of a call, sets it."""

    def set_limit(*tensors: Tensor, heads_axis: int, rpb: Tensor | None) -> None:
        whole = max(t.numel() for t in tensors)
        entry = max(t.numel() // t.shape[0] for t in tensors)
        head = max(t.numel() // t.shape[0] // t.shape[heads_axis] for t in tensors)
        group = max(t.shape[heads_axis] for t in tensors) // min(
            t.shape[heads_axis] for t in tensors
        )
        most = {"together": whole, "by batch": entry, "by heads of keys": head * group}
        # A bias that is too large for a kernel is another reason to split the heads.
        bias = 0 if rpb is None else rpb[0].numel()
        monkeypatch.setattr(launch, "MOST_ELEMENTS", max(most.get(request.param, head), bias))

    yield set_limit


@pytest.mark.parametrize("rpb", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fused_operations(doubles: Doubles, limit: Any, case: Any, rpb: bool) -> None:
    shape, heads_kv, value_dim, options = case
    tensors = tensors_of(shape, heads_kv, value_dim, options["kernel_size"], rpb)
    wanted = fused(tensors, neighborhood_attention, options)
    limit(*tensors[:3], wanted[0], heads_axis=-2, rpb=tensors[3] if rpb else None)
    actual = fused(tensors, natc.neighborhood_attention, options)
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)
    assert set(doubles.operations) == {
        "forward_lse", "delta", "d_query", "d_key", "d_value", *(["d_rpb"] if rpb else []),
    }  # fmt: skip
    for _, shapes in doubles.calls:
        sizes = [
            math.prod(size) for name, size in shapes.items() if name not in ("rpb", "partial")
        ]
        assert max(sizes) <= launch.MOST_ELEMENTS


@pytest.mark.parametrize("rpb", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_unfused_operations(doubles: Doubles, limit: Any, case: Any, rpb: bool) -> None:
    shape, heads_kv, value_dim, options = case
    options = {name: option for name, option in options.items() if name != "scale"}
    rank = len(shape) - 3
    qk, av = (getattr(natc.functional, f"na{rank}d_{name}") for name in ("qk", "av"))
    tensors = tensors_of(shape, heads_kv, value_dim, options["kernel_size"], rpb)
    bias = tensors[3] if rpb else None

    def plain() -> tuple[Tensor, Tensor]:
        logits = neighborhood_logits(*tensors[:2], **options, scale=1.0, rpb=bias)
        return logits, neighborhood_sum(logits.softmax(-1), tensors[2], **options)

    def on_kernels() -> tuple[Tensor, Tensor]:
        query, key, value = (t.movedim(-2, 1) for t in tensors[:3])
        logits = qk(query, key, **options, rpb=bias)
        output = av(logits.softmax(-1), value, **options)
        return logits.movedim(1, -2), output.movedim(1, -2)

    results = []
    for function in (plain, on_kernels):
        logits, output = function()
        if function is plain:
            every = (t.movedim(-2, 1) for t in (*tensors[:3], logits, output))
            limit(*every, heads_axis=1, rpb=bias)
        loss = output.sin().sum() + logits.exp().sum()
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), tensors)
        results.append([t.detach() for t in (logits, output, *first, *second)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-10)
    assert set(doubles.operations) == {"qk", "av", "inverse_av", *(["sum_rpb"] if rpb else [])}


def test_too_large_heads_are_refused(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOST_ELEMENTS", 9 * 8 - 1)
    query, key, value, _ = make_inputs((2, 9, 2, 8))
    shapes = r"query has shape \[1, 9, 1, 8\]|query has shape \[2, 9, 2, 8\]"
    with pytest.raises(ArgumentError, match=f"({shapes}), 72 elements in one head.*at most 71"):
        natc.na1d(query, key, value, 3)
    attn = torch.zeros(2, 1, 9, 9)
    with pytest.raises(ArgumentError, match="attn has shape .*, 81 elements in one head"):
        natc.functional.na1d_av(attn, torch.zeros(2, 1, 9, 1), 9)


def test_a_large_bias_is_split_by_heads(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tensors_of((2, 4, 3, 1), 3, 1, 7)
    wanted = fused(tensors, neighborhood_attention, {"kernel_size": 7})
    monkeypatch.setattr(launch, "MOST_ELEMENTS", 26)  # [3, 13] of the bias is more
    actual = fused(tensors, natc.na1d, {"kernel_size": 7})
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)
    assert all(shapes["rpb"][0] <= 2 for _, shapes in doubles.calls if "rpb" in shapes)


NEEDED = {
    "query": ["delta", "d_query"],
    "key": ["delta", "d_key"],
    "value": ["delta", "d_value"],
    "rpb": ["delta", "d_rpb"],
}


@pytest.mark.parametrize("name", NEEDED)
def test_only_needed_kernels_are_launched(doubles: Doubles, name: str) -> None:
    inputs = make_inputs((1, 5, 6, 2, 4), kernel_size=3)._asdict()
    inputs[name].requires_grad_()
    natc.na2d(**inputs, kernel_size=3).sum().backward()
    assert doubles.operations == ["forward_lse", *NEEDED[name]]
    doubles.calls.clear()
    natc.na2d(**inputs, kernel_size=3, return_lse=True)[1].sum().backward()
    assert doubles.operations == ["forward_lse", *NEEDED[name]]
    doubles.calls.clear()
    with torch.no_grad():
        natc.na2d(**inputs, kernel_size=3)
    assert doubles.operations == ["forward"]


UNFUSED_NEEDED = {"query": ["av"], "key": ["inverse_av"], "rpb": ["sum_rpb"]}


@pytest.mark.parametrize("name", UNFUSED_NEEDED)
def test_only_needed_unfused_kernels_are_launched(doubles: Doubles, name: str) -> None:
    inputs = make_inputs((1, 2, 6, 2, 4))._asdict()
    inputs["rpb"] = torch.randn(2, 5, 5)
    del inputs["value"]
    inputs[name].requires_grad_()
    natc.functional.na2d_qk(**inputs, kernel_size=3).sum().backward()
    assert doubles.operations == ["qk", *UNFUSED_NEEDED[name]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_heads_that_share_are_added_up_in_float32(doubles: Doubles, dtype: torch.dtype) -> None:
    inputs = make_inputs((2, 9, 16, 4), heads_kv=1, kernel_size=3, dtype=dtype)
    tensors = [t.requires_grad_() for t in inputs if t is not None]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    actual = fused(tensors, natc.na1d, {"kernel_size": 3})
    wanted = fused(exact, neighborhood_attention, {"kernel_size": 3})
    tolerance = 4 * torch.finfo(dtype).eps
    for gradient, expected, tensor in zip(actual[2:], wanted[2:], tensors, strict=True):
        assert gradient.dtype == tensor.dtype
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("change", [noncontiguous, misaligned])
def test_operations_take_any_layout(doubles: Doubles, change: Callable[[Tensor], Tensor]) -> None:
    # The doubles refuse tensors that are not compact or not aligned.
    tensors = tensors_of((2, 4, 5, 2, 4), 2, 4, 3)
    changed = [change(t) for t in tensors]
    assert_same = torch.testing.assert_close
    options = {"kernel_size": 3}
    assert_same(fused(changed, natc.na2d, options), fused(tensors, natc.na2d, options))
    heads_first = [change(t.detach().movedim(-2, 1).contiguous()) for t in tensors[:3]]
    attn = natc.functional.na2d_qk(*heads_first[:2], 3, rpb=changed[3])
    natc.functional.na2d_av(change(attn), heads_first[2].requires_grad_(), 3).sum().backward()


def test_sizes_alone_decide_the_chunks(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    def partial_of(shape: tuple[int, ...]) -> tuple[int, ...]:
        inputs = make_inputs(shape, kernel_size=3, requires_grad=True)
        doubles.calls.clear()
        natc.na1d(*inputs[:3], 3, rpb=inputs.rpb).sum().backward()
        return next(shapes["partial"] for name, shapes in doubles.calls if name == "d_rpb")

    number = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    assert partial_of((1, 5, 2, 4)) == (1, 2, 5)
    assert partial_of((3, 320, 2, 4)) == (30, 2, 5)
    number = 64
    assert partial_of((3, 320, 2, 4)) == (30, 2, 5)


@pytest.mark.parametrize(
    ("shape", "dtype", "bytes_of_one", "on_cpu", "on_cuda"),
    [
        ((1, 1, 1, 32), torch.float32, 100, 1, 1),
        ((1, 8, 14, 2, 32), torch.float32, 2 * 13 * 13 * 4, 3, 3),
        ((1, 56, 56, 2, 32), torch.float32, 2 * 13 * 13 * 4, 64, 98),
        ((128, 56, 56, 2, 32), torch.float16, 2 * 13 * 13 * 4, 64, 8192),
        # At most 4 MiB, or as much memory as the query.
        ((1, 64, 64, 2, 32), torch.float32, 2**20, 4, 4),
        ((16, 64, 64, 2, 64), torch.float32, 2**20, 32, 32),
        ((1, 64, 64, 2, 32), torch.float32, 2**30, 1, 1),
    ],
)
def test_partial_sums_stay_small(
    shape: tuple[int, ...], dtype: torch.dtype, bytes_of_one: int, on_cpu: int, on_cuda: int
) -> None:
    with FakeTensorMode():
        for device, number in (("cpu", on_cpu), ("cuda", on_cuda)):
            query = torch.empty(shape, dtype=dtype, device=device)
            assert fused_backward.chunks(query, bytes_of_one) == number


def test_a_missing_operation_takes_the_gradients_to_the_reference(doubles: Doubles) -> None:
    tensors = tensors_of((1, 9, 2, 4), 2, 4, 3)
    for operation in ("delta", "d_query", "d_key", "d_value", "d_rpb"):
        doubles.missing = {operation}
        with pytest.raises(NotCoveredError, match=f"no kernel covers {operation} of na1d_k3_d4"):
            fused(tensors, natc.na1d, {"kernel_size": 3})


def test_a_kernel_with_a_bias_serves_where_there_is_no_other(doubles: Doubles) -> None:
    doubles.without_rpb = False
    query, key, value = (t.movedim(-2, 1) for t in make_inputs((2, 9, 2, 4))[:3])
    attn = natc.functional.na1d_qk(query, key, 3, is_causal=True)
    expected = neighborhood_logits(
        query.movedim(1, -2), key.movedim(1, -2), 3, is_causal=True, scale=1.0
    )
    torch.testing.assert_close(attn.movedim(1, -2), expected)
    natc.functional.na1d_av(attn.softmax(-1).requires_grad_(), value, 3).sum().backward()
    assert doubles.operations == ["qk", "av", "qk"]
    with pytest.raises(NotCoveredError, match="no kernel covers forward of na1d_k3_d4_float32 on"):
        natc.na1d(query, key, value, 3)


def test_gradients_of_gradients_with_keys_that_are_shared(doubles: Doubles) -> None:
    derivatives = []
    for attend in (natc.na1d, neighborhood_attention):
        tensors = tensors_of((2, 6, 4, 2), 2, 3, 3)
        output, lse = attend(
            *tensors[:3], 3, rpb=tensors[3], is_causal=True, dilation=2, return_lse=True
        )
        loss = output.sin().sum() + lse.cos().sum()
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        second = torch.autograd.grad(sum(t.sin().sum() for t in first), tensors, create_graph=True)
        third = torch.autograd.grad(sum(t.square().sum() for t in second), tensors)
        derivatives.append([t.detach() for t in (*first, *second, *third)])
    torch.testing.assert_close(derivatives[0], derivatives[1], rtol=1e-8, atol=1e-10)


def test_deterministic_algorithms_are_kept_to_in_silence(doubles: Doubles) -> None:
    tensors = tensors_of((2, 9, 4, 5), 2, 3, 3)
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            once = fused(tensors, natc.na1d, {"kernel_size": 3})
            again = fused(tensors, natc.na1d, {"kernel_size": 3})
            with natc.force_reference():
                fused(tensors, natc.na1d, {"kernel_size": 3})
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))


def test_nothing_as_large_as_the_weights_is_kept(doubles: Doubles) -> None:
    tensors = tensors_of((1, 30, 30, 1, 2), 1, 2, 7)
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        natc.na2d(*tensors[:3], 7, rpb=tensors[3])
    assert kept and sum(kept) <= sum(t.numel() for t in tensors) + 30 * 30 * (2 + 1)


def test_vmap_of_gradients(doubles: Doubles) -> None:
    stacked = [torch.stack((t, t * 0.5)).detach() for t in tensors_of((1, 5, 2, 2), 1, 3, 3)]

    def of(attend: Any) -> Any:
        def loss(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor) -> Tensor:
            return attend(query, key, value, 3, rpb=rpb).sin().sum()

        gradient = torch.func.grad(loss, argnums=(0, 1, 2, 3))
        each = torch.vmap(gradient)(*stacked)
        one_bias = torch.vmap(gradient, (0, 0, 0, None))(*stacked[:3], stacked[3][0])
        return each, one_bias

    torch.testing.assert_close(of(natc.na1d), of(neighborhood_attention))


def test_vmap_of_the_unfused(doubles: Doubles) -> None:
    query, key, value, rpb = (t.detach() for t in tensors_of((3, 5, 2, 4), 2, 4, 3))
    heads_first = [t.movedim(-2, 1)[:, None] for t in (query, key, value)]  # mapped axis first

    def of(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor) -> Tensor:
        attn = natc.functional.na1d_qk(query, key, 3, rpb=rpb)
        return natc.functional.na1d_av(attn.softmax(-1), value, 3).sin().sum()

    gradient = torch.func.grad(of, argnums=(0, 1, 2, 3))
    for biases, in_dim in ((rpb, None), (torch.stack((rpb, rpb * 2, rpb - 1)), 0)):
        mapped = torch.vmap(gradient, (0, 0, 0, in_dim))(*heads_first, biases)
        each = [
            gradient(*(t[i] for t in heads_first), biases if in_dim is None else biases[i])
            for i in range(3)
        ]
        wanted = tuple(torch.stack(gradients) for gradients in zip(*each, strict=True))
        torch.testing.assert_close(mapped, wanted)


# Query, key and value in one tensor

PACKED = {1: "na1d_qkvpacked", 2: "na2d_qkvpacked", 3: "na3d_qkvpacked"}


def packed(rank: int) -> Callable[..., Any]:
    """Return a packed function that takes query, key and value as three tensors."""
    function = getattr(natc.functional, PACKED[rank])

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        return function(torch.stack((query, key, value), -3), **options)

    return attend


@pytest.mark.parametrize("rpb", [False, True])
@pytest.mark.parametrize(("shape", "options"), [(case[0], case[3]) for case in CASES], ids=str)
def test_packed(
    doubles: Doubles, limit: Any, shape: tuple[int, ...], options: dict[str, Any], rpb: bool
) -> None:
    tensors = tensors_of(shape, shape[-2], shape[-1], options["kernel_size"], rpb)
    wanted = fused(tensors, neighborhood_attention, options)
    qkv = torch.stack(tensors[:3], -3)
    limit(qkv, *tensors[:3], heads_axis=-2, rpb=tensors[3] if rpb else None)
    actual = fused(tensors, packed(len(shape) - 3), options)
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)
    assert "forward_lse_packed" in doubles.operations
    assert "forward_lse" not in doubles.operations


@pytest.mark.parametrize("missing", [(), ("forward_packed", "forward_lse_packed")], ids=str)
def test_packed_kernels_read_the_packed_tensor(doubles: Doubles, missing: tuple[str, ...]) -> None:
    doubles.missing = set(missing)
    qkv = torch.randn(2, 5, 6, 3, 2, 4)
    rpb = torch.randn(2, 5, 5)
    expected = neighborhood_attention(*qkv.unbind(-3), 3, rpb=rpb, return_lse=True)
    with torch.no_grad():
        output = natc.functional.na2d_qkvpacked(qkv, 3, rpb=rpb)
        torch.testing.assert_close(output, expected[0])
        both = natc.functional.na2d_qkvpacked(qkv, 3, rpb=rpb, return_lse=True)
    torch.testing.assert_close(both, expected)
    suffix = "" if missing else "_packed"
    assert doubles.operations == [f"forward{suffix}", f"forward_lse{suffix}"]
    doubles.calls.clear()
    natc.functional.na2d_qkvpacked(qkv, 3, rpb=rpb.requires_grad_())[0].sum().backward()
    assert doubles.operations == [f"forward_lse{suffix}", "delta", "d_rpb"]


def test_derivatives_of_packed(doubles: Doubles) -> None:
    qkv = torch.randn(1, 4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    rpb = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)

    def function(qkv: Tensor, rpb: Tensor) -> Any:
        return natc.functional.na1d_qkvpacked(qkv, 3, rpb=rpb, is_causal=True, return_lse=True)

    assert torch.autograd.gradcheck(function, (qkv, rpb), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        function, (qkv, rpb), check_fwd_over_rev=True, fast_mode=True
    )

    def loss(attend: Any) -> Callable[..., Tensor]:
        def of(qkv: Tensor, rpb: Tensor) -> Tensor:
            return attend(qkv, rpb).sin().sum()

        return of

    def plain(qkv: Tensor, rpb: Tensor) -> Any:
        return neighborhood_attention(*qkv.unbind(-3), 3, rpb=rpb, is_causal=True)

    mapped = torch.stack((qkv, qkv * 2)).detach(), torch.stack((rpb, rpb - 1)).detach()
    for in_dims, inputs in (((0, 0), mapped), ((0, None), (mapped[0], rpb.detach()))):
        gradients = [
            torch.vmap(torch.func.grad(loss(attend), argnums=(0, 1)), in_dims)(*inputs)
            for attend in (lambda *t: function(*t)[0], plain)
        ]
        torch.testing.assert_close(*gradients)


def test_an_empty_packed_tensor(doubles: Doubles) -> None:
    for shape in ((0, 4, 3, 2, 4), (2, 0, 3, 2, 4), (2, 4, 3, 0, 4)):
        qkv = torch.zeros(shape, requires_grad=True)
        output, lse = natc.functional.na1d_qkvpacked(qkv, 3, return_lse=True)
        assert output.shape == (*shape[:2], *shape[3:]) and lse.shape == output.shape[:-1]
        output.sum().backward()
        assert qkv.grad is not None and qkv.grad.shape == shape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 3, 2, 4), r"qkv has 5 axes.* 6: \[batch, height, width, 3, heads, head_dim\]"),
        ((2, 4, 5, 2, 2, 4), "qkv has shape .*; its axis before the heads must be 3"),
        ((2, 4, 5, 3, 2, 0), "qkv has shape .*head_dim must be at least 1"),
    ],
)
def test_a_bad_packed_tensor_is_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        natc.functional.na2d_qkvpacked(torch.zeros(shape), 3)
