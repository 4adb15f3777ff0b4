"""NAT: published sizes and state dicts, the golden networks, and the options."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from natc import models
from natc.checks.tolerance import relative_errors
from natc.errors import ArgumentError
from natc.models import NAT, VARIANTS, DiNATs, Isotropic, Network
from natc.models.isotropic import GlobalAttention2D
from natc.models.layers import (
    DownsamplingConv2d,
    DropPath,
    NATBlock,
    PatchEmbedding,
    PatchMerging,
)

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning"),
]

GOLDEN = Path(__file__).parents[1] / "data" / "golden_model"

INVENTORY = json.loads(gzip.decompress((GOLDEN / "model_inventory.json.gz").read_bytes()))[
    "models"
]


def small(**options: Any) -> NAT:
    settings: dict[str, Any] = {"mlp_ratio": 2, "num_classes": 10, "kernel_size": 3}
    return NAT(8, (1, 2, 1), (1, 2, 4), **(settings | options))


@pytest.mark.parametrize("name", INVENTORY)
def test_published_sizes_and_state_dicts(name: str) -> None:
    official = INVENTORY[name]
    with torch.device("meta"):
        model = getattr(models, name)()
    assert sum(p.numel() for p in model.parameters()) == official["num_parameters"]
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == official["state_dict"]
    assert list(shapes) == list(official["state_dict"])


def golden_network(name: str) -> tuple[NAT, dict[str, Tensor]]:
    with np.load(GOLDEN / f"{name}.io.npz") as file:
        params = json.loads(str(file["params"]))
        stored = {key: torch.from_numpy(file[key]) for key in file.files if key != "params"}
    model = NAT(
        params["embed_dim"],
        params["depths"],
        params["num_heads"],
        mlp_ratio=params["mlp_ratio"],
        num_classes=params["num_classes"],
        in_chans=params["in_chans"],
        kernel_size=params["kernel_size"],
        dilations=params.get("dilations"),
        layer_scale=params.get("layer_scale"),
        qkv_bias=params["qkv_bias"],
    )
    with np.load(GOLDEN / f"{name}.weights.npz") as file:
        model.load_state_dict({key: torch.from_numpy(file[key]) for key in file.files})
    return model.eval(), stored


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-7)], ids=str
)
@pytest.mark.parametrize("name", ["nat_reduced_k7_64x96", "dinat_reduced_k7_64x96"])
def test_golden_network(name: str, dtype: torch.dtype, limit: float) -> None:
    model, stored = golden_network(name)
    model.to(dtype)
    x = stored["x"].to(dtype).requires_grad_()
    maps = model.forward_intermediates(x, output_fmt="NHWC").maps
    results = {"patch_embed": model.patch_embed(x), "logits": model(x)}
    results |= {f"feat{level}": feature_map for level, feature_map in enumerate(maps)}
    results["logits"].backward(stored["d_logits"].to(dtype))
    gradients = {f"d_param.{key}": p.grad for key, p in model.named_parameters()}
    assert x.grad is not None
    gradients["d_x"] = x.grad

    expected = set(stored) - {"x", "d_logits"}
    assert set(results) < expected and len(expected) == 13
    for key in expected:
        actual = (results | gradients)[key]
        assert relative_errors(actual, stored[key].double()).largest <= limit, key


def test_golden_network_needs_the_padding() -> None:
    model, stored = golden_network("nat_reduced_k7_64x96")
    for module in model.modules():
        if hasattr(module, "pad_small_maps"):
            module.pad_small_maps = False
    with torch.no_grad():
        errors = relative_errors(model(stored["x"]), stored["logits"].double())
    assert errors.largest > 1e-3


@pytest.mark.parametrize("build", [models.nat_mini, models.nat_tiny, models.nat_small])
def test_published_drop_path_rises_to_the_last_block(build: Callable[..., NAT]) -> None:
    with torch.device("meta"):
        model = build(num_classes=2)
    rates = [m.probability for m in model.modules() if isinstance(m, DropPath)]
    last = 0.3 if build is models.nat_small else 0.2
    assert rates[0] == 0.0
    assert rates == pytest.approx([last * i / (len(rates) - 1) for i in range(len(rates))])


def test_factory_arguments() -> None:
    with torch.device("meta"):
        model = models.nat_mini(num_classes=7, in_chans=1, kernel_size=(5, 3), drop_path_rate=0.0)
    assert model.head.weight.shape == (7, 512)
    assert model.patch_embed.proj[0].weight.shape == (32, 1, 3, 3)
    rpb = model.state_dict()["levels.3.blocks.0.attn.rpb"]
    assert rpb.shape == (16, 9, 5)


def test_shapes_on_an_odd_image() -> None:
    model = small().eval()
    image = torch.randn(2, 3, 33, 50)
    maps = model.forward_intermediates(image, output_fmt="NHWC", intermediates_only=True)
    assert [tuple(m.shape) for m in maps] == [
        (2, 9, 13, 8),
        (2, 5, 7, 16),
        (2, 3, 4, 32),
    ]
    assert model(image).shape == (2, 10)


def test_convolutions_of_images_leave_tokens_as_they_lie() -> None:
    model = small()
    layouts = []
    for convolution in model.patch_embed.proj:
        convolution.register_forward_hook(
            lambda _module, inputs, output: layouts.extend(
                tensor.is_contiguous(memory_format=torch.channels_last)
                for tensor in (*inputs, output)
            )
        )
    image = torch.randn(2, 3, 32, 40)
    tokens = model.patch_embed(image)
    assert layouts == [True] * 4 and tokens.is_contiguous()
    expected = model.patch_embed.proj(image).permute(0, 2, 3, 1)
    torch.testing.assert_close(tokens, model.patch_embed.norm(expected))


@pytest.mark.parametrize("height, width", [(2, 2), (5, 4), (3, 6), (1, 1)])
def test_small_maps_are_downsampled_by_a_product(height: int, width: int) -> None:
    torch.manual_seed(0)
    convolution = DownsamplingConv2d(256).double()
    x = torch.randn(2, 256, height, width, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x, convolution.weight, stride=2, padding=1)
    for training in (True, False):
        convolution.train(training)
        with torch.profiler.profile() as profile:
            result = convolution(x)
        names = {event.name for event in profile.events()}
        assert ("aten::convolution" in names) == training
        torch.testing.assert_close(result, expected)
    large = convolution(torch.randn(2, 256, 16, 16, dtype=torch.float64))
    assert large.shape == (2, 512, 8, 8)


def test_an_exported_downsampler_takes_any_batch() -> None:
    convolution = DownsamplingConv2d(64).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        convolution, (torch.randn(2, 64, 4, 4),), dynamic_shapes=({0: batch},)
    )
    x = torch.randn(40, 64, 4, 4)
    torch.testing.assert_close(program.module()(x), convolution(x))


def test_no_classes_gives_pooled_features() -> None:
    model = small(num_classes=0).eval()
    image = torch.randn(2, 3, 32, 32)
    pooled = model.forward_features(image).mean(dim=(1, 2))
    assert torch.equal(model(image), pooled)
    assert not any(key.startswith("head") for key in model.state_dict())


def test_initial_weights() -> None:
    model = small(layer_scale=1e-5)
    state = model.state_dict()
    linear = torch.cat([t.flatten() for k, t in state.items() if k.endswith("qkv.weight")])
    assert 0.018 < linear.std() < 0.022
    assert state["levels.0.blocks.0.attn.qkv.bias"].abs().max() == 0
    assert 0.015 < state["levels.2.blocks.0.attn.rpb"].std() < 0.025
    assert (state["levels.1.blocks.1.gamma2"] == 1e-5).all()
    assert (state["norm.weight"] == 1).all() and (state["norm.bias"] == 0).all()


def test_training_step_lowers_the_loss() -> None:
    model = small(drop_path_rate=0.1).train()
    image, label = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(image), label)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    layer = DropPath(0.25).train()
    x = torch.ones(4000, 3, 2)
    y = layer(x)
    kept = y[:, 0, 0] != 0
    assert torch.equal(y, (kept / 0.75)[:, None, None].expand_as(y))
    assert abs(kept.float().mean() - 0.75) < 0.03
    assert layer.eval()(x) is x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilations": [[1], [1], [1]]}, r"dilations must hold .* lengths \[1, 2, 1\]"),
        ({"num_classes": -1}, "num_classes must be at least 0, not -1"),
        ({"drop_path_rate": 1.0}, r"drop path must be in \[0, 1\), not 1.0"),
        ({"kernel_size": 0}, "kernel_size is 0; it must be at least 1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        small(**options)


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ArgumentError, match="embed_dim must be even and positive, not 7"):
        NAT(7, (1,), (1,), mlp_ratio=2)
    with pytest.raises(ArgumentError, match="depths and num_heads must name the same levels"):
        NAT(8, (1, 1), (1,), mlp_ratio=2)


# The published networks


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("nat_mini", 2.7),
        ("nat_tiny", 4.3),
        ("nat_small", 7.8),
        ("nat_base", 13.7),
        ("dinat_large", 30.6),
        ("dinat_s_small", 8.7),
        ("dinat_isotropic_base", 16.9),
    ],
)
def test_published_multiply_adds(name: str, published: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        getattr(models, name)()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(published, rel=0.01)


def test_every_variant_is_exported_and_built_by_its_name() -> None:
    assert set(INVENTORY) | {"dinat_large_384", "dinat_large_384_11x11", "dinat_s_large_384"} == (
        set(VARIANTS)
    )
    assert set(VARIANTS) <= set(models.__all__)
    for name, variant in VARIANTS.items():
        assert getattr(models, name) is variant.build and variant.weights
        assert all(url.startswith("https://") for url in variant.weights.values())
    assert len({url for v in VARIANTS.values() for url in v.weights.values()}) == sum(
        len(v.weights) for v in VARIANTS.values()
    )


def dilations(model: Network) -> list[list[int]]:
    return [
        [module.attn.dilation[0] for module in stage.modules() if isinstance(module, NATBlock)]
        for stage in model.stages
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nat_mini", [[1] * 3, [1] * 4, [1] * 6, [1] * 5]),
        ("dinat_mini", [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 3, [1] * 5]),
        ("dinat_large_384", [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 9, [1] * 5]),
        ("dinat_large_384_11x11", [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1] * 5]),
        ("dinat_s_tiny", [[1, 8], [1, 4], [1, 2] * 3, [1, 1]]),
        ("dinat_isotropic_small", [[1], [2]] * 6),
    ],
)
def test_published_dilations(name: str, expected: list[list[int]]) -> None:
    with torch.device("meta"):
        model = getattr(models, name)()
    assert dilations(model) == expected
    size = VARIANTS[name].img_size
    assert all(len(set(block.attn.kernel_size)) == 1 for block in model.blocks())
    # The rule by which set_input_size finds the dilations gives the published ones.
    model.set_input_size(size)
    assert dilations(model) == expected


def test_another_image_size_dilates_over_the_whole_map() -> None:
    with torch.device("meta"):
        model = models.dinat_mini()
        model.set_input_size(384)
        assert dilations(model) == [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 3, [1] * 5]
        model.set_input_size((224, 100))
        assert model.stages[0].blocks[1].attn.dilation == (8, 3)
        # A map smaller than the window, and back.
        model.set_input_size(16)
        assert model.stages[0].blocks[1].attn.dilation == (1, 1)
        model.set_input_size(224)
        assert dilations(model)[0] == [1, 8, 1]
    with pytest.raises(ArgumentError, match="img_size must be one or two positive ints, not 0"):
        model.set_input_size(0)


def test_another_kernel_size_interpolates_biases() -> None:
    model = small(kernel_size=7).eval()
    offsets = torch.arange(-6.0, 7)
    with torch.no_grad():
        for block in model.blocks():
            # Linear in the distance, so that the interpolation is known away from the edge.
            block.attn.rpb.copy_((offsets[:, None] + 2 * offsets).expand_as(block.attn.rpb))
    model.set_input_size(kernel_size=(11, 7))
    rpb = model.blocks()[0].attn.rpb
    assert rpb.shape == (1, 21, 13) and rpb.requires_grad
    assert model.blocks()[0].attn.kernel_size == (11, 7)
    expected = (torch.arange(-10.0, 11) * 13 / 21)[:, None] + 2 * offsets
    # Cubic interpolation between whole offsets is a little off; the center lies on one.
    torch.testing.assert_close(rpb[0, 4:-4], expected[4:-4], rtol=0, atol=0.1)
    torch.testing.assert_close(rpb[0, 10], 2 * offsets)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    model.set_input_size(kernel_size=7)
    assert model.blocks()[0].attn.rpb.shape == (1, 13, 13)


def test_patch_merging_takes_the_tokens_of_a_patch_column_by_column() -> None:
    layer = PatchMerging(2)
    with torch.no_grad():
        layer.reduction.weight.copy_(torch.eye(4, 8))
    x = torch.randn(1, 3, 5, 2)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1))
    patch = padded[:, 2:4, 0:2]
    tokens = [patch[:, row, column] for column in (0, 1) for row in (0, 1)]
    expected = layer.norm(torch.cat(tokens, dim=-1))[:, :4]
    merged = layer(x)
    assert merged.shape == (1, 2, 3, 4)
    torch.testing.assert_close(merged[:, 1, 0], expected)


def test_patches_that_stick_out_are_padded() -> None:
    stem = PatchEmbedding(3, 4, 4)
    image = torch.randn(1, 3, 9, 8)
    tokens = stem(image)
    assert tokens.shape == (1, 3, 2, 4)
    padded = torch.nn.functional.pad(image, (0, 0, 0, 3))
    torch.testing.assert_close(tokens, stem(padded))


def test_global_attention_is_attention_of_all_tokens_with_the_published_index() -> None:
    layer = GlobalAttention2D(8, 2, 3)
    x = torch.randn(2, 3, 3, 8)
    query, key, value = layer.qkv(x).reshape(2, 9, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind()
    bias = layer.rpb.flatten(1)[:, layer.relative_position_index]
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias)
    expected = layer.proj(attended.transpose(1, 2).reshape(2, 3, 3, 8))
    torch.testing.assert_close(layer(x), expected)


# The interface of backbones


def networks() -> dict[str, Network]:
    return {
        "nat": small(layer_scale=1e-5),
        "dinat_s": DiNATs(
            8, (1, 2), (1, 2), mlp_ratio=2, num_classes=10, kernel_size=3, dilations=[[2], [1, 2]]
        ),
        "isotropic": Isotropic(8, 3, 2, patch_size=8, num_classes=10, kernel_size=3),
    }


@pytest.mark.parametrize("name", ["nat", "dinat_s", "isotropic"])
def test_intermediates(name: str) -> None:
    model = networks()[name].eval()
    image = torch.randn(2, 3, 33, 50)
    final, maps = model.forward_intermediates(image)
    assert torch.equal(final, model.forward_features(image))
    assert torch.equal(model(image), model.forward_head(final))
    assert torch.equal(model.forward_head(final, pre_logits=True), final.mean(dim=(1, 2)))
    for feature_map, info in zip(maps, model.feature_info, strict=True):
        height, width = (-(-size // info["reduction"]) for size in image.shape[2:])
        assert feature_map.shape == (2, info["num_chs"], height, width)
    last = len(maps) - 1
    only = model.forward_intermediates(
        image, indices=[0, -1], norm=True, output_fmt="NHWC", intermediates_only=True
    )
    assert torch.equal(only[0], maps[0].permute(0, 2, 3, 1))
    assert torch.equal(only[1], model.norm(maps[last].permute(0, 2, 3, 1)))
    (first,) = model.forward_intermediates(
        image, indices=[0], stop_early=True, intermediates_only=True
    )
    assert torch.equal(first, maps[0])
    (one,) = model.forward_intermediates(image, indices=1, intermediates_only=True)
    assert torch.equal(one, maps[last])
    with pytest.raises(ArgumentError, match=rf"indices must name stages .* not \[{last + 1}\]"):
        model.forward_intermediates(image, indices=[last + 1])
    with pytest.raises(ArgumentError, match="output_fmt must be 'NCHW' or 'NHWC', not 'NLC'"):
        model.forward_intermediates(image, output_fmt="NLC")


@pytest.mark.parametrize("name", ["nat", "dinat_s", "isotropic"])
def test_pruned_networks_give_the_same_maps_and_use_all_their_parameters(name: str) -> None:
    model = networks()[name].eval()
    image = torch.randn(1, 3, 32, 32)
    (expected,) = model.forward_intermediates(image, indices=[0], intermediates_only=True)
    assert model.prune_intermediate_layers([0]) == [0]
    assert len(model.stages) == 1 and model.num_features == expected.shape[1]
    (pruned,) = model.forward_intermediates(image, indices=[0], intermediates_only=True)
    assert torch.equal(pruned, expected)
    pruned.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["nat", "dinat_s", "isotropic"])
def test_checkpointing_recomputes_blocks_and_changes_nothing(name: str) -> None:
    model = networks()[name].train()
    image = torch.randn(2, 3, 32, 32)
    calls = []
    for block in model.blocks():
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        calls.clear()
        model(image).square().sum().backward()
        assert len(calls) == len(model.blocks()) * (1 + enable)
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("name", ["nat", "dinat_s", "isotropic"])
def test_heads_are_replaced(name: str) -> None:
    model = networks()[name].to(torch.float64).eval()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model.reset_classifier(3)
    assert model(image).shape == (2, 3) and model.get_classifier() is model.head
    assert 0.01 < model.head.weight.std() < 0.03 and not model.head.bias.any()
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(image).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert torch.equal(model(image), model.forward_features(image))
    with pytest.raises(ArgumentError, match="global_pool must be 'avg' or '', not 'max'"):
        model.reset_classifier(0, "max")


def test_biases_are_not_decayed() -> None:
    model = networks()["nat"]
    names = model.no_weight_decay()
    assert len(names) == 4 and names < set(model.state_dict())
    assert all(name.endswith(".attn.rpb") for name in names)


def test_backbones_have_a_norm_for_each_map() -> None:
    model = small(num_classes=0, map_norms=True).eval()
    keys = {key for key in model.state_dict() if key.startswith("norm")}
    assert keys == {f"norm{i}.{part}" for i in range(3) for part in ("weight", "bias")}
    image = torch.randn(1, 3, 32, 32)
    maps = model.forward_intermediates(image, output_fmt="NHWC", intermediates_only=True)
    for feature_map in maps:
        torch.testing.assert_close(
            feature_map.mean(-1), torch.zeros(feature_map.shape[:-1]), atol=1e-5, rtol=0
        )
    with pytest.raises(ArgumentError, match="map_norms needs num_classes=0, not 10"):
        small(map_norms=True)
