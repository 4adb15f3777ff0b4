"""Names of weights: the authors' layout and Transformers', and what programs wrap around them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]

# (pattern of the authors' name, Transformers' name), part by part.
_TO_HF = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^levels\.", "encoder.levels."),
    (r"\.blocks\.", ".layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.rpb$", ".attention.self.rpb"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "layernorm."),
)
_FROM_HF = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.levels\.", "levels."),
    (r"\.layers\.", ".blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.rpb$", ".attn.rpb"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
_PROJECTIONS = ("query", "key", "value")


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def unwrapped(content: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the weights in a file's content, and which part of it they are.

    The averaged weights (EMA) of a training checkpoint come before its last ones.
    """
    for part in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(part), Mapping):
            weights, wrapper = dict(content[part]), part
            break
    else:
        weights, wrapper = dict(content), ""
    prefix = "module."
    if weights and all(name.startswith(prefix) for name in weights):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights, wrapper


def is_hf(weights: Mapping[str, Any]) -> bool:
    """Return whether the weights have Transformers' names."""
    return any(name.endswith("attention.self.query.weight") for name in weights)


def from_hf(weights: Mapping[str, Tensor]) -> Weights:
    """Return weights of Transformers under the authors' names; query, key and value joined."""
    renamed: Weights = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in weights.items():
        name = re.sub(r"^(nat|dinat)\.", "", full_name)
        projection = re.match(r"(.*)\.attention\.self\.(query|key|value)\.(weight|bias)$", name)
        stage = re.match(r"hidden_states_norms\.stage(\d+)\.(.*)$", name)
        if projection:
            block, part, kind = projection.groups()
            qkv = _renamed(f"{block}.", _FROM_HF) + f"attn.qkv.{kind}"
            parts.setdefault(qkv, {})[part] = tensor
        elif stage:
            renamed[f"norm{int(stage[1]) - 1}.{stage[2]}"] = tensor
        elif name.endswith(".layer_scale_parameters"):
            block = _renamed(name.removesuffix("layer_scale_parameters"), _FROM_HF)
            renamed[block + "gamma1"], renamed[block + "gamma2"] = tensor.unbind()
        else:
            renamed[_renamed(name, _FROM_HF)] = tensor
    for name, by_part in parts.items():
        # A missing part leaves the joined weight out, and loading names it.
        if set(by_part) == set(_PROJECTIONS):
            renamed[name] = torch.cat([by_part[part] for part in _PROJECTIONS])
    return renamed


def to_hf(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    """Return weights under Transformers' names; `prefix` is "nat." or "dinat.", or "" without."""
    renamed: Weights = {}
    for name, tensor in weights.items():
        joined = re.match(r"(.*)\.attn\.qkv\.(weight|bias)$", name)
        map_norm = re.match(r"norm(\d+)\.(.*)$", name)
        if joined:
            block = _renamed(joined[1] + ".", _TO_HF)
            for part, rows in zip(_PROJECTIONS, tensor.chunk(3), strict=True):
                renamed[f"{prefix}{block}attention.self.{part}.{joined[2]}"] = rows.clone()
        elif map_norm:
            renamed[f"hidden_states_norms.stage{int(map_norm[1]) + 1}.{map_norm[2]}"] = tensor
        elif name.endswith(".gamma1"):
            block = name.removesuffix("gamma1")
            scales = torch.stack([tensor, weights[block + "gamma2"]])
            renamed[prefix + _renamed(block, _TO_HF) + "layer_scale_parameters"] = scales
        elif name.startswith("head."):
            renamed["classifier." + name.removeprefix("head.")] = tensor
        elif not name.endswith(".gamma2"):
            renamed[prefix + _renamed(name, _TO_HF)] = tensor
    return renamed


def backbone_of(weights: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the weights under `backbone.` without this prefix, and the names of all others.

    Detectors and segmenters keep a network there. Without such a prefix, all are returned.
    """
    prefix = "backbone."
    if not any(name.startswith(f"{prefix}patch_embed.") for name in weights):
        return dict(weights), []
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    return inside, [name for name in weights if not name.startswith(prefix)]
