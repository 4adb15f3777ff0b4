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

from natc import models
from natc.checks.tolerance import relative_errors
from natc.errors import ArgumentError
from natc.models import NAT
from natc.models.layers import DropPath

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning"),
]

GOLDEN = Path(__file__).parents[1] / "data" / "golden_model"

PARAMETERS = {
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
}


def small(**options: Any) -> NAT:
    settings: dict[str, Any] = {"mlp_ratio": 2, "num_classes": 10, "kernel_size": 3}
    return NAT(8, (1, 2, 1), (1, 2, 4), **(settings | options))


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes_and_state_dicts(name: str) -> None:
    inventory = json.loads(gzip.decompress((GOLDEN / "model_inventory.json.gz").read_bytes()))
    official = inventory["models"][name]
    with torch.device("meta"):
        model = getattr(models, name)()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert official["num_parameters"] == PARAMETERS[name]
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
    maps = model.forward_features(x)
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
    assert [tuple(m.shape) for m in model.forward_features(image)] == [
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


def test_no_classes_gives_pooled_features() -> None:
    model = small(num_classes=0).eval()
    image = torch.randn(2, 3, 32, 32)
    pooled = model.norm(model.forward_features(image)[-1]).mean(dim=(1, 2))
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
