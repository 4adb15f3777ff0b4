"""A picture of a network's work: the photograph beside the feature map of each level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from natc.demo.image import PHOTOGRAPH_CREDIT, displayable
from natc.errors import NatcError

INK = "#1f2933"
QUIET = "#6b7785"
CONTRAST = 1.4


def feature_picture(
    image: Tensor,
    feature_maps: Sequence[Tensor],
    path: str | Path,
    *,
    pretrained: bool = False,
) -> Path:
    """Write a PNG with the photograph beside the feature maps of all levels; return its path.

    image: normalized photograph `[1, 3, height, width]`. feature_maps: one map
    `[1, height, width, channels]` a level, finest first. path: its directory must exist.
    pretrained: whether the weights are trained; the caption says if they are random. Raises
    NatcError if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NatcError(
            "The picture is drawn with matplotlib, which is not installed: "
            "pip install 'natc[demo]'."
        ) from error
    panels = 1 + len(feature_maps)
    figure = Figure(figsize=(2.1 * panels + 0.2, 3.75), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    figure.subplots_adjust(left=0.015, right=0.985, top=0.77, bottom=0.22, wspace=0.06)

    axes[0].imshow(displayable(image).numpy(), interpolation="lanczos")
    _titles(axes[0], "photograph", f"{image.shape[2]} × {image.shape[3]} pixels")
    for level, (axis, feature_map) in enumerate(zip(axes[1:], feature_maps, strict=True), start=1):
        _, height, width, channels = feature_map.shape
        axis.imshow(principal_colors(feature_map).numpy(), interpolation="nearest")
        _titles(axis, f"level {level}", f"{height} × {width} map, {channels} channels")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)

    figure.text(
        0.015,
        0.94,
        "NAT-Mini on neighborhood attention: the features of each level",
        color=INK,
        fontsize=15,
        fontweight="bold",
        va="center",
    )
    weights = (
        "Trained weights."
        if pretrained
        else "The weights are random: the network recognizes nothing."
    )
    caption = (
        "Red, green and blue: the first three principal components of a level's features, a "
        "square for each position.\nBorders stand out because convolutions pad with zeros. "
        f"{weights}\n{PHOTOGRAPH_CREDIT}"
    )
    figure.text(0.015, 0.11, caption, color=QUIET, fontsize=10, va="center", linespacing=1.5)
    path = Path(path)
    figure.savefig(path, format="png")
    return path


def principal_colors(feature_map: Tensor) -> Tensor:
    """Return `[height, width, 3]` in 0..1: the first three principal components as colors.

    Each component is signed so that its largest value is positive. All three are divided by the
    standard deviation of the first, so that weak ones look weak, and squashed by a sigmoid; a map
    that does not vary becomes gray. feature_map: `[1, height, width, channels]`.
    """
    _, height, width, channels = feature_map.shape
    features = feature_map.detach().reshape(height * width, channels).cpu().double()
    features = features - features.mean(dim=0)
    _, _, directions = torch.linalg.svd(features, full_matrices=False)
    components = torch.zeros(height * width, 3, dtype=torch.float64, device="cpu")
    axes = min(3, directions.shape[0])
    components[:, :axes] = features @ directions[:axes].T
    # The sign of a principal component is arbitrary: fix it, or colors change between runs.
    extreme = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    components = components * torch.where(extreme < 0, -1.0, 1.0)
    deviation = components[:, 0].std(correction=0).clamp_min(1e-12)
    return torch.sigmoid(CONTRAST * components / deviation).reshape(height, width, 3)


def _titles(axis: object, title: str, subtitle: str) -> None:
    axis.set_title(title, color=INK, fontsize=13, loc="left", pad=18)  # type: ignore[attr-defined]
    axis.text(  # type: ignore[attr-defined]
        0.0,
        1.02,
        subtitle,
        transform=axis.transAxes,  # type: ignore[attr-defined]
        color=QUIET,
        fontsize=10,
        va="bottom",
    )
