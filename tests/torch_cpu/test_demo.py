"""The photograph, the picture, and the comparison that `natc quickstart` shows."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from natc import functional
from natc.demo.compare import attention_specs, compare_network
from natc.demo.image import displayable, photograph
from natc.demo.pictures import feature_picture, principal_colors
from natc.models import NAT
from natc.nn import NeighborhoodAttention2D

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning"),
]

OFFLINE = """
import socket
def refuse(*arguments, **options):
    raise RuntimeError("opened a connection")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.create_connection = socket.getaddrinfo = refuse
from natc.demo.image import photograph
print(tuple(photograph().shape))
"""


def tiny() -> NAT:
    torch.manual_seed(0)
    return NAT(8, (1, 1, 1, 1), (1, 2, 4, 8), mlp_ratio=2, num_classes=5, kernel_size=3)


def test_photograph_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    # An empty home: nothing that an earlier download left behind can help.
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(1, 3, 224, 224)"


def test_photograph_is_normalized_and_can_be_shown() -> None:
    pytest.importorskip("skimage")
    image = photograph(64)
    assert image.shape == (1, 3, 64, 64) and image.dtype == torch.float32
    assert abs(image.mean()) < 1 and 0.4 < image.std() < 1.5
    pixels = displayable(image)
    assert pixels.shape == (64, 64, 3)
    assert 0 <= pixels.min() < 0.2 and 0.7 < pixels.max() <= 1
    # The cat is orange: more red than blue.
    assert pixels[..., 0].mean() > pixels[..., 2].mean() + 0.1


def test_picture_shows_the_photograph_and_every_level(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    image = photograph(64)
    with torch.no_grad():
        maps = tiny().forward_intermediates(image, output_fmt="NHWC").maps
    path = feature_picture(image, maps, tmp_path / "picture.png")
    pixels = imread(path)
    assert pixels.shape[1] > 2 * pixels.shape[0] > 900
    # A row through the middle crosses five panels, with white between and beside them.
    inked = (pixels[pixels.shape[0] // 2, :, :3] < 0.99).any(axis=1)
    starts = (inked[1:] & ~inked[:-1]).sum()
    assert starts == 5


def test_principal_colors_find_the_directions_that_vary() -> None:
    ramp = torch.linspace(-1, 1, 8)
    feature_map = torch.zeros(1, 8, 8, 16)
    feature_map[0] += 3 * ramp[:, None, None] * torch.randn(16)
    colors = principal_colors(feature_map + 100)
    assert colors.shape == (8, 8, 3)
    red = colors[:, :, 0]
    assert torch.allclose(red, red[:, :1].expand_as(red), atol=1e-5)
    steps = red[1:, 0] - red[:-1, 0]
    assert (steps > 0.02).all() or (steps < -0.02).all()
    # Nothing else varies, so the others stay gray.
    assert torch.allclose(colors[:, :, 1:], torch.full((8, 8, 2), 0.5).double(), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
def test_principal_colors_of_few_channels_and_of_nothing(channels: int) -> None:
    assert principal_colors(torch.randn(1, 4, 5, channels)).shape == (4, 5, 3)
    assert (principal_colors(torch.ones(1, 1, 1, channels)) == 0.5).all()


def test_network_agrees_with_itself_and_keeps_its_mode() -> None:
    model = tiny().train()
    comparison = compare_network(model, torch.randn(1, 3, 64, 64))
    assert model.training
    assert comparison.max_error < 1e-5
    assert comparison.logits.shape == (1, 5)
    assert [m.shape[1] for m in comparison.feature_maps] == [16, 8, 4, 2]
    assert set(comparison.covered) | set(comparison.uncovered) == {"na2d_k3_d8_float32_rpb"}


def test_comparison_shows_a_network_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    from natc import nn, ops

    forced = []
    right = functional.na2d_qkvpacked

    def wrong(*arguments: object, **options: object) -> object:
        output = right(*arguments, **options)  # type: ignore[arg-type,call-overload]
        return output if forced else -output

    class Forced:
        def __enter__(self) -> None:
            forced.append(True)

        def __exit__(self, *_: object) -> None:
            forced.clear()

    monkeypatch.setitem(nn._ATTENTION, 2, wrong)
    monkeypatch.setattr(ops, "force_reference", Forced)
    comparison = compare_network(tiny(), torch.randn(1, 3, 64, 64))
    assert all(error > 1e-4 for error in comparison.feature_errors)
    assert comparison.max_error >= comparison.logits_error > 0


def test_comparison_of_nan_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    torch.nn.init.constant_(model.levels[3].blocks[0].mlp.fc2.bias, math.nan)
    assert math.isnan(compare_network(model, torch.randn(1, 3, 64, 64)).max_error)


def test_specs_of_a_model_are_listed_once_each() -> None:
    model = torch.nn.Sequential(
        NeighborhoodAttention2D(32, 1, 7),
        NeighborhoodAttention2D(64, 2, 7),
        NeighborhoodAttention2D(32, 1, (3, 5), rel_pos_bias=False),
    )
    names = [spec.name for spec in attention_specs(model, torch.float16)]
    assert names == ["na2d_k7_d32_float16_rpb", "na2d_k3x5_d32_float16"]
