"""NAT and DiNAT as models of Transformers: Auto classes, and the layout on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.vision import repair_torchvision

from natc import models

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

SMALL: dict[str, Any] = {
    "embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "kernel_size": 3,
    "dilations": [[1], [1, 2], [1], [1]], "layer_scale_init_value": 0.5, "num_labels": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def hf() -> Any:
    repair_torchvision()
    pytest.importorskip("transformers", reason="needs transformers: pip install 'natc[hf]'")
    from natc.models import hf

    return hf


def test_classifiers_are_saved_and_read_again(hf: Any, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForImageClassification

    model = hf.DinatForImageClassification(hf.DinatConfig(**SMALL)).eval()
    model.save_pretrained(tmp_path)
    image = torch.randn(1, 3, 32, 32)
    logits = model(image).logits
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is hf.DinatForImageClassification
    assert torch.equal(again(image).logits, logits)
    # natc reads the same folder.
    assert torch.equal(models.load(tmp_path).eval()(image), logits)
    loss = again(image, labels=torch.tensor([1])).loss
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[0, 1])
    headless = AutoModel.from_pretrained(tmp_path)
    assert type(headless) is hf.DinatModel
    torch.testing.assert_close(again.network.head(headless(image).pooler_output), logits)
    fewer = hf.DinatForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert fewer(image).logits.shape == (1, 3)


def test_backbones_return_normalized_maps(hf: Any, tmp_path: Path) -> None:
    config = hf.NatConfig(**{**SMALL, "dilations": None}, out_features=["stage2", "stage4"])
    backbone = hf.NatBackbone(config).eval()
    image = torch.randn(1, 3, 32, 32)
    maps = backbone(image).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 16, 4, 4), (1, 64, 1, 1)]
    assert backbone.channels == [16, 64] and maps[0].mean(1).abs().max() < 1e-5
    backbone.save_pretrained(tmp_path)
    again = hf.NatBackbone.from_pretrained(tmp_path)
    assert all(map(torch.equal, again(image).feature_maps, maps))
