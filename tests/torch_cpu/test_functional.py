"""The fused functions, on a kernel and on the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.c_library import HEAD_DIM, KERNEL_SIZE, SPECS, LibraryDirectory
from support.kernel_double import Doubles
from support.layouts import misaligned, noncontiguous

import natc
from natc.checks.inputs import make_inputs
from natc.errors import ArgumentError
from natc.reference import neighborhood_attention

SHAPE = (2, 5, 7, 3, HEAD_DIM)

# A fallback that a test does not expect is a failure: the kernel did not run.
pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("error::natc.dispatch.fallback.NatcFallbackWarning"),
]


@pytest.mark.parametrize("rpb", [False, True])
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dilation": 2},
        {"dilation": [1, 3]},
        {"stride": 3},
        {"stride": (2, 1), "is_causal": True},
        {"is_causal": (False, True), "dilation": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "case",
    [(SHAPE, 3), (SHAPE, 1), ((1, 1, 1, 1, 8), 1), ((1, 2, 9, 4, 8), 2), ((3, 4, 2, 2, 8), 2)],
)
def test_kernel_and_reference_agree(
    kernels: LibraryDirectory, case: Any, options: dict[str, Any], return_lse: bool, rpb: bool
) -> None:
    shape, heads_kv = case
    inputs = make_inputs(shape, heads_kv=heads_kv, kernel_size=KERNEL_SIZE if rpb else None)
    options = {**options, "scale": 0.7, "return_lse": return_lse}
    actual = natc.na2d(*inputs[:3], KERNEL_SIZE, rpb=inputs.rpb, **options)
    expected = neighborhood_attention(*inputs[:3], KERNEL_SIZE, rpb=inputs.rpb, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert kernels.calls(SPECS[rpb]) == 1


def test_the_default_scale(kernels: LibraryDirectory) -> None:
    query, key, value, _ = make_inputs(SHAPE)
    default = natc.na2d(query, key, value, KERNEL_SIZE)
    explicit = natc.na2d(query, key, value, KERNEL_SIZE, scale=HEAD_DIM**-0.5)
    zero = natc.na2d(query, key, value, KERNEL_SIZE, scale=0)
    assert torch.equal(default, explicit)
    expected = neighborhood_attention(query, key, value, KERNEL_SIZE, scale=0.0)
    torch.testing.assert_close(zero, expected)


@pytest.mark.parametrize("name", ["query", "key", "value", "rpb"])
@pytest.mark.parametrize(
    "change",
    [
        noncontiguous,
        misaligned,
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: torch.view_as_complex(torch.stack((t, -t), -1)).conj().imag,
        lambda t: torch.nn.Parameter(t, requires_grad=False),
    ],
    ids=["strided", "misaligned", "transposed", "lazily negated", "parameter"],
)
def test_any_layout_is_taken(
    kernels: LibraryDirectory, change: Callable[[torch.Tensor], torch.Tensor], name: str
) -> None:
    inputs = make_inputs(SHAPE, kernel_size=KERNEL_SIZE)._asdict()
    expected = natc.na2d(**inputs, kernel_size=KERNEL_SIZE)
    inputs[name] = change(inputs[name])
    before = inputs[name].clone()
    actual = natc.na2d(**inputs, kernel_size=KERNEL_SIZE)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert actual.is_contiguous()
    assert torch.equal(inputs[name], before)
    assert kernels.calls(SPECS[True]) == 2


def test_nothing_is_copied(kernels: LibraryDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, rpb = make_inputs(SHAPE, kernel_size=KERNEL_SIZE)
    natc.na2d(query, key, value, KERNEL_SIZE, rpb=rpb)
    monkeypatch.setattr(torch.Tensor, "clone", lambda *_, **__: pytest.fail("copied"))
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_, **__: pytest.fail("copied"))
    natc.na2d(query, key, value, KERNEL_SIZE, rpb=rpb)
    assert kernels.calls(SPECS[True]) == 2


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_empty_axes(kernels: LibraryDirectory, axis: int, dtype: torch.dtype) -> None:
    shape = list(SHAPE)
    shape[axis] = 0
    inputs = make_inputs(shape, kernel_size=KERNEL_SIZE, dtype=dtype, requires_grad=True)
    output, lse = natc.na2d(*inputs[:3], KERNEL_SIZE, rpb=inputs.rpb, return_lse=True)
    assert output.shape == torch.Size(shape) and output.dtype == dtype
    assert lse.shape == torch.Size(shape[:-1])
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert natc.na2d(*inputs[:3], KERNEL_SIZE).shape == torch.Size(shape)
    (output.sum() + lse.sum()).backward()
    for tensor in inputs:
        assert tensor is not None and tensor.grad is not None
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kernel_size": 4}, "kernel 4"),
        ({"kernel_size": (2, 5)}, "kernel 2x5"),
        ({"kernel_size": 4, "is_causal": (False, True), "return_lse": True}, "kernel 4"),
        ({"kernel_size": 65}, "65"),
    ],
)
def test_uncovered_calls(kernels: LibraryDirectory, changes: dict[str, Any], reason: str) -> None:
    query, key, value, _ = make_inputs(SHAPE)
    options = {"kernel_size": KERNEL_SIZE, **changes}
    with pytest.warns(natc.NatcFallbackWarning, match=reason) as caught:
        actual = natc.na2d(query, key, value, **options)
    assert caught[0].filename == __file__, "it points at the call, not into natc or torch"
    expected = neighborhood_attention(query, key, value, **options)
    # natc sums only the taps on the map, in another order than the reference.
    tolerance = 1e-6 if options["kernel_size"] == 65 else 0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rpb_dtype", [torch.float64, torch.float32, torch.float16])
def test_other_dtypes_run_on_the_reference(
    kernels: LibraryDirectory, dtype: torch.dtype, rpb_dtype: torch.dtype
) -> None:
    query, key, value, rpb = make_inputs(SHAPE, kernel_size=KERNEL_SIZE, dtype=dtype)
    assert rpb is not None
    name = str(dtype).removeprefix("torch.")
    with pytest.warns(natc.NatcFallbackWarning, match=name):
        output, lse = natc.na2d(
            query, key, value, KERNEL_SIZE, rpb=rpb.to(rpb_dtype), return_lse=True
        )
    expected = neighborhood_attention(
        query, key, value, KERNEL_SIZE, rpb=rpb.to(rpb_dtype), return_lse=True
    )
    torch.testing.assert_close((output, lse), expected, rtol=0, atol=0)
    assert output.dtype == dtype


def test_an_rpb_of_another_dtype_is_cast_for_a_kernel(kernels: LibraryDirectory) -> None:
    query, key, value, rpb = make_inputs(SHAPE, kernel_size=KERNEL_SIZE)
    assert rpb is not None
    half = rpb.half().requires_grad_()
    output = natc.na2d(query, key, value, KERNEL_SIZE, rpb=half)
    expected = natc.na2d(query, key, value, KERNEL_SIZE, rpb=half.detach().float())
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert kernels.calls(SPECS[True]) == 2
    with pytest.warns(natc.NatcFallbackWarning, match="delta of na2d_k3_d8_float32_rpb on cpu"):
        output.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.float16


def test_autocast_casts_query_key_and_value(kernels: LibraryDirectory) -> None:
    query, key, value, rpb = make_inputs(SHAPE, kernel_size=KERNEL_SIZE)
    under_autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    with pytest.warns(natc.NatcFallbackWarning, match="bfloat16"), under_autocast:
        actual, lse = natc.na2d(
            query, key.bfloat16(), value.half(), KERNEL_SIZE, rpb=rpb, return_lse=True
        )
    low = query.bfloat16(), key.bfloat16(), value.half().bfloat16()
    expected = neighborhood_attention(*low, KERNEL_SIZE, rpb=rpb, return_lse=True)
    assert actual.dtype == torch.bfloat16 and lse.dtype == torch.float32
    # Bit for bit: autocast must not reach into the reference and lower its accumulation.
    torch.testing.assert_close((actual, lse), expected, rtol=0, atol=0)
    with pytest.warns(natc.NatcFallbackWarning, match="float64"), under_autocast:
        wide = natc.na2d(query.double(), key.double(), value.double(), KERNEL_SIZE)
    assert wide.dtype == torch.float64


def calls(rank: int) -> list[Any]:
    return [(natc.na1d, natc.na2d, natc.na3d)[rank - 1], natc.neighborhood_attention]


@pytest.mark.parametrize(
    "case",
    [
        ((2, 9, 4, 5), {"kernel_size": 4, "stride": 3, "dilation": 2}),
        ((1, 9, 4, 5), {"kernel_size": (5,), "is_causal": [True]}),
        ((2, 5, 7, 4, 5), {"kernel_size": [2, 5], "stride": (2, 3), "is_causal": (True, False)}),
        ((1, 3, 4, 5, 4, 5), {"kernel_size": 3, "dilation": (1, 2, 1), "stride": (3, 1, 2)}),
        ((1, 3, 4, 5, 4, 5), {"kernel_size": (2, 3, 7), "is_causal": (True, False, True)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("tokens", [None, 0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_rank_and_option(
    libraries: LibraryDirectory, case: Any, tokens: int | None, dtype: torch.dtype
) -> None:
    shape, options = case
    rank = len(shape) - 3
    sizes = options["kernel_size"]
    inputs = make_inputs(
        shape, kernel_size=sizes if isinstance(sizes, int) else tuple(sizes), heads_kv=2,
        value_dim=3, dtype=dtype,
    )  # fmt: skip
    options = {**options, "rpb": inputs.rpb, "return_lse": True}
    if tokens is not None:
        more = make_inputs((shape[0], tokens, 2, 5), value_dim=3, dtype=dtype, seed=1)
        options |= {"additional_keys": more.key, "additional_values": more.value}
    expected = neighborhood_attention(*inputs[:3], **options)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    with natc.force_reference():
        for function in calls(rank):
            output, lse = function(*inputs[:3], **options)
            assert output.dtype == dtype and lse.dtype == expected[1].dtype
            torch.testing.assert_close(output, expected[0], rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(lse, expected[1])


def test_gradients_with_additional_tokens(libraries: LibraryDirectory) -> None:
    inputs = make_inputs((1, 3, 2, 2), heads_kv=1, value_dim=1, kernel_size=3)
    more = make_inputs((1, 2, 1, 2), value_dim=1, seed=1)
    tensors = [t.double().requires_grad_() for t in (*inputs, more.key, more.value)]

    def attend(*leaves: torch.Tensor) -> Any:
        query, key, value, rpb, keys, values = leaves
        return natc.na1d(
            query, key, value, 3, rpb=rpb, additional_keys=keys, additional_values=values,
            is_causal=True, return_lse=True,
        )  # fmt: skip

    with natc.force_reference():
        assert torch.autograd.gradcheck(attend, tensors, check_forward_ad=True)
        # The fast mode takes one random direction instead of every element.
        assert torch.autograd.gradgradcheck(
            attend, tensors, check_fwd_over_rev=True, fast_mode=True
        )


def test_masked_windows_attend_only_to_tokens(doubles: Doubles) -> None:
    inputs = make_inputs((1, 5, 2, 2), kernel_size=3, value_dim=3).to_float64()
    more = make_inputs((1, 2, 2, 2), value_dim=3, seed=1).to_float64()
    assert inputs.rpb is not None
    inputs.rpb[1] = -math.inf
    results = []
    for attend in (natc.na1d, natc.force_reference()(natc.na1d), neighborhood_attention):
        tensors = [t.clone().requires_grad_() for t in (*inputs, more.key, more.value)]
        query, key, value, rpb, keys, values = tensors
        output, lse = attend(
            query, key, value, 3, rpb=rpb, additional_keys=keys, additional_values=values,
            return_lse=True,
        )  # fmt: skip
        loss = output.sin().sum() + lse.cos().sum()
        results.append((output.detach(), lse.detach(), *torch.autograd.grad(loss, tensors)))
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[2])
    assert all(t.isfinite().all() for t in results[0])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_functions_refuse_other_ranks(libraries: LibraryDirectory, rank: int) -> None:
    for wrong_rank in (rank - 1, rank + 1):
        query = torch.zeros(1, *[3] * wrong_rank, 2, 4)
        with pytest.raises(ArgumentError, match=f"query has {wrong_rank + 3} axes.* must have"):
            calls(rank)[0](query, query, query, 3)
    for axes in (3, 7):
        query = torch.zeros(*[1] * axes)
        with pytest.raises(ArgumentError, match=f"query has {axes} axes.* 4, 5 or 6"):
            natc.neighborhood_attention(query, query, query, 3)
    query = torch.zeros(1, *[3] * rank, 2, 4)
    for name in ("kernel_size", "dilation", "stride", "is_causal"):
        entries = [True] * (rank + 1) if name == "is_causal" else [3] * (rank + 1)
        for function in calls(rank):
            with pytest.raises(ArgumentError, match=f"{name} is .*, one per axis"):
                function(query, query, query, **{"kernel_size": 3, name: entries})


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("mask", "na2d_qk"),
        ("attn_mask", "na2d_qk"),
        ("key_padding_mask", "na2d_qk"),
        ("dropout_p", "na2d_qk"),
        ("cu_seqlens", "one call per sequence"),
        ("causal", "is_causal"),
        ("kernel", "help"),
    ],
)
def test_arguments_of_other_libraries_have_a_remedy(name: str, instead: str) -> None:
    x = torch.zeros(1, 5, 5, 2, 4)
    calls = [(natc.na2d, (x, x, x)), (natc.neighborhood_attention, (x, x, x))]
    calls.append((natc.functional.na2d_qkvpacked, (torch.stack((x, x, x), -3),)))
    calls += [(natc.na1d, (x[0],) * 3), (natc.na3d, (x[None],) * 3)]
    for function, tensors in calls:
        with pytest.raises(TypeError, match=f"no argument '{name}'.*{instead}"):
            function(*tensors, 3, **{name: None})
