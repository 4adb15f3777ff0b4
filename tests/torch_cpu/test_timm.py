"""The networks in timm: names, features, optimizers, published files, other windows."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fresh_process import run_fresh
from support.vision import timm as import_timm

from natc.models import VARIANTS, Network
from natc.models.when_imported import when_imported

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

SMALL = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8), "kernel_size": 3}


@pytest.fixture(scope="module")
def timm() -> Any:
    return import_timm()


def test_a_package_is_watched_until_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watched_package.py").write_text("ready = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    finders = list(sys.meta_path)
    states = []

    def note() -> None:
        states.append(sys.modules["watched_package"].ready)

    when_imported("watched_package", note)
    assert states == []
    importlib.import_module("watched_package")
    assert states == [True] and sys.meta_path == finders
    # At once, if it is imported already.
    when_imported("watched_package", note)
    assert states == [True, True] and sys.meta_path == finders
    del sys.modules["watched_package"]


def test_every_variant_is_a_model_of_timm(timm: Any) -> None:
    assert set(VARIANTS) <= set(timm.list_models())
    for name, variant in VARIANTS.items():
        for data, url in variant.weights.items():
            cfg = timm.get_pretrained_cfg(f"{name}.{data}")
            assert (cfg.url, cfg.crop_pct, cfg.classifier) == (url, 0.875, "head")
            assert cfg.input_size == (3, variant.img_size, variant.img_size)
        # Without a tag, the first file.
        assert timm.get_pretrained_cfg(name).url == next(iter(variant.weights.values()))
    assert timm.get_pretrained_cfg("dinat_large.in22k").num_classes == 21841
    assert timm.get_pretrained_cfg("dinat_large").num_classes == 1000


@pytest.mark.parametrize("name", VARIANTS)
def test_names_in_timms_settings_are_those_of_layers(timm: Any, name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, in_chans=1, num_classes=7)
        size = VARIANTS[name].img_size
        final = model.forward_features(torch.empty(1, 1, size, size))
    cfg = model.pretrained_cfg
    assert isinstance(model, Network) and type(model) is VARIANTS[name].network
    assert model.get_submodule(cfg["first_conv"]).in_channels == 1
    assert model.get_submodule(cfg["classifier"]).out_features == 7
    assert tuple(final.shape[1:3]) == cfg["pool_size"]
    assert final.shape[3] == model.num_features == model.head_hidden_size


def test_features_only(timm: Any) -> None:
    model = timm.create_model("nat_mini", features_only=True, **SMALL).eval()
    assert model.feature_info.channels() == [8, 16, 32, 64]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    image = torch.randn(1, 3, 64, 96)
    maps = model(image)
    assert [tuple(m.shape) for m in maps] == [
        (1, 8, 16, 24), (1, 16, 8, 12), (1, 32, 4, 6), (1, 64, 2, 3),
    ]  # fmt: skip
    some = timm.create_model("nat_mini", features_only=True, out_indices=(0, 2), **SMALL).eval()
    some.load_state_dict(model.state_dict(), strict=False)
    assert some.feature_info.channels() == [8, 32]
    assert all(map(torch.equal, some(image), (maps[0], maps[2])))
    # The last level is gone.
    assert len(some.model.stages) == 3
    sum(m.sum() for m in some(image)).backward()
    assert all(p.grad is not None for p in some.parameters())


def test_isotropic_features(timm: Any) -> None:
    with torch.device("meta"):
        model = timm.create_model("nat_isotropic_small", features_only=True)
        maps = model(torch.empty(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 384, 4, 6)] * 4


def test_learning_rates_decay_from_layer_to_layer(timm: Any) -> None:
    from timm.optim import create_optimizer_v2

    model = timm.create_model("nat_mini", **SMALL)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    scale, decay = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            scale[names[parameter]] = group["lr_scale"]
            decay[names[parameter]] = group["weight_decay"]
    assert set(scale) == set(names.values())
    order = [
        "patch_embed.proj.0.weight",
        "levels.0.blocks.0.mlp.fc1.weight",
        "levels.0.downsample.reduction.weight",
        "levels.1.blocks.0.mlp.fc1.weight",
        "levels.1.blocks.1.mlp.fc1.weight",
        "levels.1.downsample.reduction.weight",
        "levels.2.blocks.0.mlp.fc1.weight",
        "levels.2.downsample.reduction.weight",
        "levels.3.blocks.0.mlp.fc1.weight",
        "head.weight",
    ]
    scales = [scale[name] for name in order]
    assert scales == pytest.approx([0.5 ** (9 - index) for index in range(10)])
    assert all(decay[name] == 0 for name in names.values() if name.endswith("rpb"))
    assert all(decay[name] == 0.05 for name in order)


def test_published_files_are_adapted_to_the_model(timm: Any, tmp_path: Path) -> None:
    source = timm.create_model("nat_mini", **SMALL, num_classes=11)
    torch.save(source.state_dict(), tmp_path / "nat.pth")
    adapted = timm.create_model(
        "nat_mini",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "nat.pth"), "num_classes": 11},
        **(SMALL | {"kernel_size": 5}),
        in_chans=1,
        num_classes=4,
    )
    weights, own = source.state_dict(), adapted.state_dict()
    assert own["head.weight"].shape == (4, 64)
    first = "patch_embed.proj.0.weight"
    torch.testing.assert_close(own[first], weights[first].sum(1, keepdim=True))
    rpb = "levels.3.blocks.0.attn.rpb"
    assert own[rpb].shape == (8, 9, 9)
    torch.testing.assert_close(own[rpb][:, 4, 4], weights[rpb][:, 2, 2])
    same = "levels.2.blocks.0.attn.qkv.weight"
    assert torch.equal(own[same], weights[same])


def test_image_size_sets_dilations(timm: Any) -> None:
    with torch.device("meta"):
        model = timm.create_model("dinat_mini", img_size=384)
    assert model.levels[0].blocks[1].attn.dilation == (13, 13)


def test_models_are_traced_by_fx(timm: Any) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision, which timm brings")
    from torchvision.models.feature_extraction import create_feature_extractor

    model = timm.create_model("nat_mini", **SMALL, num_classes=3).eval()
    from timm.models import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import NodePathTracer

    tracer = {
        "leaf_modules": list(get_notrace_modules()),
        "autowrap_functions": list(get_notrace_functions()),
    }
    names = NodePathTracer(**tracer)
    names.trace(model)
    last = list(names.node_to_qualname.values())[-1]
    traced = create_feature_extractor(model, [last], tracer_kwargs=tracer)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(traced(image)[last], model(image))


def test_torchvisions_pyramid_takes_the_maps(timm: Any) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision, which timm brings")
    from torchvision.ops import FeaturePyramidNetwork

    model = timm.create_model("nat_mini", features_only=True, **SMALL).eval()
    pyramid = FeaturePyramidNetwork(model.feature_info.channels(), 16)
    maps = pyramid({str(i): m for i, m in enumerate(model(torch.randn(1, 3, 64, 64)))})
    assert [tuple(m.shape) for m in maps.values()] == [(1, 16, s, s) for s in (16, 8, 4, 2)]


def test_models_without_timm() -> None:
    program = """
import importlib.abc, sys
class NoTimm(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("timm", "torchvision", "safetensors", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTimm())
import natc.models
try:
    import timm
except ModuleNotFoundError as error:
    print(error)
print(natc.models.nat_mini(embed_dim=8, num_heads=(1, 1, 1, 1)).num_features)
"""
    assert run_fresh(program).split() == ["timm", "64"]
