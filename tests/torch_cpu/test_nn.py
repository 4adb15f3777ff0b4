"""The modules around neighborhood attention: options, parameters, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from natc.errors import ArgumentError, ArgumentTypeError
from natc.nn import (
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)
from natc.reference import neighborhood_attention

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning"),
]


MODULES = {1: NeighborhoodAttention1D, 2: NeighborhoodAttention2D, 3: NeighborhoodAttention3D}


def by_hand(module: torch.nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The module's formula with everything written out."""
    rows = dict(zip("qkv", module.qkv.weight.chunk(3), strict=True))
    bias = module.qkv.bias
    biases = dict(zip("qkv", bias.chunk(3), strict=True)) if bias is not None else {}
    heads = [
        torch.nn.functional.linear(x, rows[n], biases.get(n)).unflatten(-1, (module.num_heads, -1))
        for n in "qkv"
    ]
    output = neighborhood_attention(*heads, module.kernel_size, rpb=module.rpb, **options)
    assert isinstance(output, Tensor)
    return torch.nn.functional.linear(output.flatten(-2), module.proj.weight, module.proj.bias)


@pytest.mark.parametrize(
    ("rank", "kernel_size", "options"),
    [
        (1, 4, {}),
        (1, (5,), {"dilation": (2,), "stride": 3, "is_causal": (True,)}),
        (2, (5, 4), {}),
        (2, (5, 4), {"dilation": (1, 2)}),
        (2, (5, 4), {"stride": (2, 3)}),
        (2, (5, 4), {"is_causal": (True, False)}),
        (3, 3, {"stride": (1, 2, 3)}),
        (3, (2, 3, 4), {"dilation": (1, 2, 1), "is_causal": (False, True, False)}),
    ],
    ids=str,
)
def test_module_is_projections_around_attention(
    rank: int, kernel_size: Any, options: dict[str, Any]
) -> None:
    module = MODULES[rank](12, 3, kernel_size, **options).double()
    x = torch.randn(2, *(4, 5, 6)[-rank:], 12, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_hand(module, x, **options), rtol=0, atol=1e-13)
    sizes = (kernel_size,) * rank if isinstance(kernel_size, int) else kernel_size
    assert module.rpb.shape == (3, *(2 * size - 1 for size in sizes))


@pytest.mark.parametrize(
    ("rank", "axes"), [(1, "length"), (3, "depth, height, width")], ids=["1D", "3D"]
)
def test_bad_settings_of_other_ranks_are_named(rank: int, axes: str) -> None:
    with pytest.raises(ArgumentError, match=r"kernel_size is \(3, 3\); it must have"):
        MODULES[rank](8, 2, (3, 3))
    with pytest.raises(ArgumentError, match=r"is_causal is \(True, True\); it must have"):
        MODULES[rank](8, 2, 3, is_causal=(True, True))
    with pytest.raises(ArgumentError, match=rf"x must have shape \[batch, {axes}, 8\], not"):
        MODULES[rank](8, 2, 3)(torch.zeros(1, 5, 5, 8))


def test_qk_scale_multiplies_the_scores() -> None:
    module = NeighborhoodAttention2D(16, 2, 3, qk_scale=0.9).double()
    x = torch.randn(1, 5, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_hand(module, x, scale=0.9), rtol=0, atol=1e-13)
    assert not torch.allclose(module(x), by_hand(module, x))


def test_small_map_shrinks_the_window_to_self_attention_unless_padded() -> None:
    module = NeighborhoodAttention2D(16, 2, 7, rel_pos_bias=False).double()
    x = torch.randn(1, 3, 4, 16, dtype=torch.float64)
    query, key, value = (
        t.unflatten(-1, (2, 8)).flatten(1, 2).transpose(1, 2) for t in module.qkv(x).chunk(3, -1)
    )
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    expected = module.proj(attended.transpose(1, 2).reshape(1, 3, 4, 16))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-13)

    module.pad_small_maps = True
    assert not torch.allclose(module(x), expected)


@pytest.mark.parametrize(
    ("spatial", "kernel_size", "dilation"),
    [
        ((5,), 3, 2),
        ((2, 3), 5, 1),
        ((9, 4), 5, 1),
        ((8, 20), 5, 3),
        ((7, 7), 5, 1),
        ((7, 2, 5), 3, 2),
    ],
    ids=str,
)
def test_padding_is_zeros_before_the_projection(
    spatial: tuple[int, ...], kernel_size: int, dilation: int
) -> None:
    options = {"dilation": dilation, "pad_small_maps": True}
    module = MODULES[len(spatial)](16, 2, kernel_size, **options).double()
    torch.nn.init.normal_(module.qkv.bias)
    x = torch.randn(2, *spatial, 16, dtype=torch.float64)
    smallest = kernel_size * dilation
    padded = torch.zeros(2, *(max(size, smallest) for size in spatial), 16, dtype=torch.float64)
    inside = tuple(slice(size) for size in x.shape[:-1])
    padded[inside] = x
    expected = by_hand(module, padded, dilation=dilation)[inside]
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-13)


def test_padding_changes_nothing_where_a_window_fits() -> None:
    module = NeighborhoodAttention2D(16, 2, 3, dilation=2)
    x = torch.randn(1, 6, 8, 16)
    plain = module(x)
    module.pad_small_maps = True
    assert torch.equal(module(x), plain)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("rel_pos_bias", [True, False])
def test_parameters(rel_pos_bias: bool, qkv_bias: bool) -> None:
    module = NeighborhoodAttention2D(32, 4, (7, 3), rel_pos_bias=rel_pos_bias, qkv_bias=qkv_bias)
    expected = {
        "qkv.weight": (96, 32),
        "proj.weight": (32, 32),
        "proj.bias": (32,),
    }
    expected |= {"rpb": (4, 13, 5)} if rel_pos_bias else {}
    expected |= {"qkv.bias": (96,)} if qkv_bias else {}
    assert {name: tuple(p.shape) for name, p in module.state_dict().items()} == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_module(dtype: torch.dtype) -> None:
    module = NeighborhoodAttention2D(32, 2, 3)
    x = torch.randn(1, 6, 7, 32)
    expected = module(x)
    result = module.to(dtype)(x.to(dtype))
    assert result.dtype == dtype
    assert (result.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_empty_batch() -> None:
    assert NeighborhoodAttention2D(8, 2, 3)(torch.empty(0, 4, 5, 8)).shape == (0, 4, 5, 8)


def test_proj_drop_drops_only_while_training() -> None:
    module = NeighborhoodAttention2D(8, 2, 3, proj_drop=0.5)
    x = torch.randn(1, 6, 6, 8)
    assert 0.3 < (module(x) == 0).float().mean() < 0.7
    module.eval()
    assert (module(x) != 0).all()


def test_settings_show_in_print() -> None:
    text = repr(NeighborhoodAttention2D(8, 2, 3, dilation=(1, 2), pad_small_maps=True))
    assert "kernel_size=(3, 3), stride=(1, 1), dilation=(1, 2)" in text
    assert "pad_small_maps=True" in text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 30}, ArgumentError, "dim must be a positive multiple of num_heads, not dim=30"),
        ({"num_heads": 0}, ArgumentError, "num_heads=0"),
        ({"kernel_size": 0}, ArgumentError, "kernel_size is 0; it must be at least 1"),
        ({"kernel_size": (3, 3, 3)}, ArgumentError, r"kernel_size is \(3, 3, 3\)"),
        ({"kernel_size": 3.0}, ArgumentTypeError, "kernel_size is 3.0"),
        ({"dilation": (1, 0)}, ArgumentError, r"dilation is \(1, 0\); it must be at least 1"),
        ({"dilation": True}, ArgumentTypeError, "dilation is True"),
        ({"stride": 4}, ArgumentError, "stride is 4; it must not exceed kernel_size, which is 3"),
        ({"is_causal": 1}, ArgumentTypeError, "is_causal is 1; it must be True or False"),
        ({"is_causal": (True,)}, ArgumentError, r"is_causal is \(True,\)"),
        ({"qk_scale": "1"}, ArgumentTypeError, "scale is '1'"),
        ({"proj_drop": 1.0}, ArgumentError, r"proj_drop must be in \[0, 1\), not 1.0"),
    ],
    ids=str,
)
def test_bad_settings(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"dim": 32, "num_heads": 4, "kernel_size": 3}
    with pytest.raises(error, match=message):
        NeighborhoodAttention2D(**(good | arguments))


@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 5, 5, 7), (1, 2, 5, 5, 8)], ids=str)
def test_bad_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"x must have shape \[batch, height, width, 8\]"):
        NeighborhoodAttention2D(8, 2, 3)(torch.zeros(shape))
