"""Checkpoints: layouts, the report of what was recognized, and damaged or foreign files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from natc import models
from natc.errors import ArgumentError, CheckpointError
from natc.models import NAT, layouts
from natc.models.settings import variant_in

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning"),
]

SMALL: dict[str, Any] = {
    "embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8), "kernel_size": 3,
}  # fmt: skip
DILATIONS = [[1], [1, 2], [1], [1]]


def small(**options: Any) -> NAT:
    return models.nat_mini(**{**SMALL, "num_classes": 5, "layer_scale": 0.5, **options}).eval()


def same(left: models.Network, right: models.Network) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def load(path: Path, **options: Any) -> models.Network:
    settings = {"variant": "nat_mini", **SMALL, "layer_scale": 0.5}
    del settings["kernel_size"]
    return models.load(path, **{**settings, **options})


WRAPPED: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "arch": "nat_mini"},
    "state_dict_ema": lambda weights: {
        "state_dict": {k: t + 1 for k, t in weights.items()},
        "state_dict_ema": weights,
    },
    "model": lambda weights: {"model": {f"module.{k}": t for k, t in weights.items()}},
}


@pytest.mark.parametrize("hf", [False, True], ids=["official", "hf"])
@pytest.mark.parametrize("part", WRAPPED)
def test_wrapped_weights(part: str, hf: bool, tmp_path: Path) -> None:
    model = small()
    weights = model.state_dict()
    torch.save(
        WRAPPED[part](layouts.to_hf(weights, "nat.") if hf else weights), tmp_path / "w.pth"
    )
    loaded = load(tmp_path / "w.pth")
    assert same(loaded, model)
    report = loaded.checkpoint
    assert (report.part, report.layout) == (part, "hf" if hf else "official")
    assert not report.ignored and not report.new and not report.interpolated
    assert "nat_mini" in str(report)


def test_transformers_names() -> None:
    weights = small().state_dict()
    renamed = layouts.to_hf(weights, "nat.")
    layer = "nat.encoder.levels.1.layers.0"
    assert torch.equal(
        torch.cat(
            [renamed[f"{layer}.attention.self.{p}.weight"] for p in ("query", "key", "value")]
        ),
        weights["levels.1.blocks.0.attn.qkv.weight"],
    )
    assert renamed[f"{layer}.layer_scale_parameters"].shape == (2, 16)
    assert {name.removeprefix(layer + ".") for name in renamed if name.startswith(layer)} == {
        "layer_scale_parameters", "attention.self.rpb",
        *(f"{m}.{p}" for p in ("weight", "bias") for m in (
            "layernorm_before", "layernorm_after", "attention.self.query", "attention.self.key",
            "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense",
        )),
    }  # fmt: skip
    assert {name for name in renamed if ".layers." not in name} == {
        *(f"nat.embeddings.patch_embeddings.projection.{i}.{p}" for i in (0, 1)
          for p in ("weight", "bias")),
        *(f"{m}.{p}" for p in ("weight", "bias") for m in (
            "nat.embeddings.norm", "nat.layernorm", "classifier",
            *(f"nat.encoder.levels.{i}.downsample.norm" for i in range(3)))),
        *(f"nat.encoder.levels.{i}.downsample.reduction.weight" for i in range(3)),
    }  # fmt: skip
    back = layouts.from_hf(renamed)
    assert back.keys() == weights.keys() and all(torch.equal(back[k], weights[k]) for k in back)


@pytest.mark.parametrize("hf", [False, True], ids=["official", "hf"])
def test_detectors_give_their_backbone_with_its_norms(hf: bool, tmp_path: Path) -> None:
    backbone = small(num_classes=0, map_norms=True)
    weights = backbone.state_dict()
    if hf:
        weights = layouts.to_hf(weights, "")
        assert "hidden_states_norms.stage1.weight" in weights
        content: dict[str, Any] = weights
    else:
        content = {
            "state_dict": {f"backbone.{name}": t for name, t in weights.items()},
            "meta": {},
        }
        content["state_dict"]["neck.fpn_convs.0.conv.weight"] = torch.zeros(1)
    torch.save(content, tmp_path / "detector.pth")
    loaded = load(tmp_path / "detector.pth")
    assert same(loaded, backbone)
    assert loaded.checkpoint.ignored == ([] if hf else ["neck.fpn_convs.0.conv.weight"])
    maps = loaded.forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NHWC").maps
    assert maps[0].mean(-1).abs().max() < 1e-5


def test_another_head_and_another_window(tmp_path: Path) -> None:
    model = small()
    models.save(model, tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth", num_classes=3, kernel_size=5)
    assert loaded.checkpoint.new == ["head.weight", "head.bias"]
    assert len(loaded.checkpoint.interpolated) == 5
    assert loaded.head.weight.shape == (3, 64)
    rpb = loaded.levels[0].blocks[0].attn.rpb
    torch.testing.assert_close(rpb[:, 4, 4], model.levels[0].blocks[0].attn.rpb[:, 2, 2])
    headless = load(tmp_path / "w.pth", num_classes=0)
    assert headless.checkpoint.ignored == ["head.bias", "head.weight"]
    models.save(headless, tmp_path / "headless.pth")
    assert load(tmp_path / "headless.pth", num_classes=4).checkpoint.new == [
        "head.weight", "head.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("nat_mini.pth", "nat_mini"),
        ("nat_base_cascademaskrcnn.pth", "nat_base"),
        ("dinat_large_in22k_in1k_384_11x11.pth", "dinat_large_384_11x11"),
        ("dinat_large_in22k_in1k_384.pth", "dinat_large_384"),
        ("dinat_s_tiny_in1k_224.pth", "dinat_s_tiny"),
        ("dinat_s_large_in1k_384.pth", "dinat_s_large_384"),
        ("shi-labs/dinat-mini-in1k-224", "dinat_mini"),
        ("model_best.pth.tar", None),
    ],
)
def test_names_of_files_say_which_network_it_is(name: str, variant: str | None) -> None:
    assert variant_in(name) == variant


@pytest.mark.parametrize("layout", ["official", "hf", "timm"])
def test_round_trips(layout: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors: pip install 'natc[timm]'")
    model = small(dilations=DILATIONS)
    models.save(model, tmp_path / "a.safetensors")
    first = load(tmp_path / "a.safetensors", dilations=DILATIONS)
    path = tmp_path / ("b.pth" if layout == "official" else "folder")
    models.save(first, path, layout)
    if layout == "hf":
        # The configuration says everything.
        again = models.load(path)
        config = json.loads((path / "config.json").read_text())
        assert (config["model_type"], config["dilations"]) == ("dinat", DILATIONS)
    else:
        again = load(path, dilations=DILATIONS)
    assert same(again, model)
    image = torch.randn(1, 3, 40, 40)
    assert torch.equal(again.eval()(image), model(image))


def test_timm_reads_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors: pip install 'natc[timm]'")
    model = models.nat_mini(num_classes=3, kernel_size=5)
    models.save(model, tmp_path / "folder", "timm")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["architecture"] == "nat_mini" and config["model_args"] == {"kernel_size": [5, 5]}
    assert same(models.load(tmp_path / "folder"), model)
    # A network that is none of timm's.
    with pytest.raises(CheckpointError, match="names a published network, and this is none"):
        models.save(models.Isotropic(8, 2, 2), tmp_path / "small", "timm")


def test_only_nat_and_dinat_are_in_transformers(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = models.dinat_s_tiny()
    with pytest.raises(CheckpointError, match="Transformers has NAT and DiNAT only, not DiNATs"):
        models.save(model, tmp_path / "folder", "hf")
    assert not (tmp_path / "folder").exists()


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("code-ran",)


def test_code_in_a_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "extra": Code()}, "nat_mini.pth")
    with pytest.raises(CheckpointError, match=r"nat_mini\.pth .* could run code"):
        models.load("nat_mini.pth")
    assert not Path("code-ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_cut_off_files_are_named(suffix: str, tmp_path: Path) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="needs safetensors: pip install 'natc[timm]'")
    path = tmp_path / f"nat_mini{suffix}"
    models.save(small(), path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name.replace(".", r"\.")):
            models.load(path)


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pth"
    models.save(small(), path)
    before = path.read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.save(small(), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    models.save(small(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "w.pth", depths=(1, 1, 1, 1), layer_scale=None, mlp_ratio=2)
    message = str(caught.value)
    assert "unexpected: levels.0.blocks.0.gamma1" in message and "w.pth" in message
    assert "mismatched: levels.0.blocks.0.mlp.fc1.weight [24, 8] instead of [16, 8]" in message
    with pytest.raises(CheckpointError, match=r"missing: .*levels\.0\.blocks\.1\.norm1\.weight"):
        load(tmp_path / "w.pth", depths=(2, 2, 1, 1))
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"no weights of a NAT: fc\.weight"):
        models.load(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, not weights by name"):
        models.load(tmp_path / "list.pth")


def test_what_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    models.save(small(), tmp_path / "w.pth")
    with pytest.raises(ArgumentError, match="weights do not hold dilations; pass variant="):
        models.load(tmp_path / "w.pth")
    with pytest.raises(ArgumentError, match="variant is 'nat_huge'; it must be one of"):
        models.load(tmp_path / "w.pth", variant="nat_huge")
    with pytest.raises(CheckpointError, match="there is no file or folder absent.pth"):
        models.load("absent.pth")
    with pytest.raises(CheckpointError, match=r"config\.json is missing or no JSON"):
        models.load(tmp_path)
    with pytest.raises(ArgumentError, match="layout is 'onnx'; it must be one of official"):
        models.save(small(), tmp_path / "x", "onnx")
    own = small()
    assert same(models.load(tmp_path / "w.pth", model=own), own)
