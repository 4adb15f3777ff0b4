"""The published networks as models of timm: `timm.create_model("nat_tiny")`.

Importing this module registers them; it needs the extra `natc[timm]`. `natc.models` imports it
when timm is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import register_notrace_module
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from natc.models.isotropic import GlobalAttention2D
from natc.models.layers import (
    ConvTokenizer,
    DownsamplingConv2d,
    DropPath,
    PatchEmbedding,
    PatchMerging,
)
from natc.models.network import Network, PerAxis
from natc.models.variant import VARIANTS, Variant
from natc.models.windows import resized_bias
from natc.nn import NeighborhoodAttention2D

# Their forward depends on shapes and devices, which torch.fx cannot trace.
for _module in (
    ConvTokenizer,
    DownsamplingConv2d,
    DropPath,
    GlobalAttention2D,
    NeighborhoodAttention2D,
    PatchEmbedding,
    PatchMerging,
):
    register_notrace_module(_module)


def _settings(variant: Variant) -> dict[str, dict[str, Any]]:
    """Return timm's settings of each published file, by the name of the model with its tag."""
    side = variant.img_size // variant.network.final_reduction
    return {
        f"{variant.name}.{data}": {
            "url": url,
            "num_classes": variant.num_classes(data),
            "input_size": (3, variant.img_size, variant.img_size),
            "pool_size": (side, side),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": variant.network.first_conv,
            "classifier": "head",
        }
        for data, url in variant.weights.items()
    }


# timm looks this name up in the module that registers a model.
default_cfgs = generate_default_cfgs(
    {name: cfg for variant in VARIANTS.values() for name, cfg in _settings(variant).items()}
)


def fitted_weights(weights: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return a checkpoint's weights, with position biases interpolated to the model's windows."""
    own = model.state_dict()
    return {
        name: resized_bias(tensor, [(offsets + 1) // 2 for offsets in own[name].shape[1:]])
        if name.endswith(".rpb") and name in own
        else tensor
        for name, tensor in weights.get("state_dict", weights).items()
    }


def _register(variant: Variant) -> None:
    """Register a network under its name."""

    def network(*, img_size: PerAxis | None = None, **options: Any) -> Network:
        model = variant.build(**options)
        if img_size is not None:
            model.set_input_size(img_size)
        return model

    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        features: dict[str, Any] = {"feature_cls": "getter"}
        if variant.network.final_reduction == 32:
            features["out_indices"] = (0, 1, 2, 3)
        else:
            # All twelve maps have one size: take every third.
            features["out_indices"] = (2, 5, 8, 11)
        return build_model_with_cfg(
            network,
            variant.name,
            pretrained,
            feature_cfg=features,
            pretrained_filter_fn=fitted_weights,
            **options,
        )

    entrypoint.__name__ = entrypoint.__qualname__ = variant.name
    entrypoint.__doc__ = variant.build.__doc__
    register_model(entrypoint)


__all__: Sequence[str] = []
for _variant in VARIANTS.values():
    _register(_variant)
