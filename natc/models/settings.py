"""Reads a network's settings from its weights, and lists the settings of a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from natc.errors import CheckpointError
from natc.models.nat import NAT, NATLevel
from natc.models.network import Network
from natc.models.variant import VARIANTS


def from_weights(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of a build function that weights in the authors' layout determine."""
    options: dict[str, Any] = {}
    stem = weights.get("patch_embed.proj.0.weight", weights.get("patch_embed.proj.weight"))
    if stem is None:
        raise CheckpointError(
            f"these are no weights of a NAT: {', '.join(list(weights)[:4])}, ... but no "
            "patch_embed.proj."
        )
    options["in_chans"] = stem.shape[1]
    head = weights.get("head.weight")
    options["num_classes"] = 0 if head is None else head.shape[0]
    biases = [tensor for name, tensor in weights.items() if name.endswith(".rpb")]
    if biases:
        options["kernel_size"] = tuple((size + 1) // 2 for size in biases[0].shape[1:])
    if "norm0.weight" in weights:
        options["map_norms"] = True
    return options


def variant_in(name: str) -> str | None:
    """Return the published network that a file's name, or a name on the hub, speaks of."""
    for variant in VARIANTS.values():
        if any(url.endswith(f"/{name}") for url in variant.weights.values()):
            return variant.name
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower())
    named = [variant for variant in VARIANTS if re.search(rf"(^|_){variant}(_|$)", plain)]
    if not named:
        return None
    longest = max(named, key=len)
    if "384" in plain and f"{longest}_384" in VARIANTS:
        longest = f"{longest}_384"
        if "11x11" in plain and f"{longest}_11x11" in VARIANTS:
            return f"{longest}_11x11"
    return longest


def from_hf_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `NAT` that a config.json of Transformers determines."""
    return {
        "embed_dim": config.get("embed_dim", 64),
        "depths": config.get("depths", [3, 4, 6, 5]),
        "num_heads": config.get("num_heads", [2, 4, 8, 16]),
        "mlp_ratio": config.get("mlp_ratio", 3.0),
        "kernel_size": config.get("kernel_size", 7),
        "dilations": config.get("dilations"),
        "qkv_bias": config.get("qkv_bias", True),
        "layer_scale": config.get("layer_scale_init_value", 0.0) or None,
        "drop_path_rate": config.get("drop_path_rate", 0.1),
    }


def hf_config(model: Network) -> dict[str, Any]:
    """Return the config.json of Transformers for a NAT or DiNAT.

    Raises:
        CheckpointError: Transformers has no such network.
    """
    if type(model) is not NAT:
        raise CheckpointError(
            f"Transformers has NAT and DiNAT only, not {type(model).__name__}: convert it to "
            "'official' or 'timm'."
        )
    levels = [level for level in model.stages if isinstance(level, NATLevel)]
    blocks: list[list[Any]] = [list(level.blocks) for level in levels]
    first = blocks[0][0]
    windows = {tuple(block.attn.kernel_size) for level in blocks for block in level}
    dilations = [[block.attn.dilation for block in level] for level in blocks]
    squares = [len(set(pair)) == 1 for level in dilations for pair in level]
    if len(windows) > 1 or len(set(next(iter(windows)))) > 1 or not all(squares):
        raise CheckpointError("Transformers' configuration has one square window and dilations.")
    is_dilated = any(max(pair) > 1 for level in dilations for pair in level)
    kind = "dinat" if is_dilated else "nat"
    config: dict[str, Any] = {
        "architectures": [f"{'Dinat' if is_dilated else 'Nat'}ForImageClassification"],
        "model_type": kind,
        "patch_size": 4,
        "num_channels": model.get_submodule(model.first_conv).in_channels,
        "embed_dim": model.feature_info[0]["num_chs"],
        "depths": [len(level) for level in blocks],
        "num_heads": [level[0].attn.num_heads for level in blocks],
        "kernel_size": first.attn.kernel_size[0],
        "mlp_ratio": first.mlp.fc1.out_features / first.mlp.fc1.in_features,
        "qkv_bias": first.attn.qkv.bias is not None,
        "hidden_act": "gelu",
        "layer_norm_eps": first.norm1.eps,
        "drop_path_rate": blocks[-1][-1].drop_path.probability,
        "layer_scale_init_value": first.layer_scale or 0.0,
    }
    if is_dilated:
        config["dilations"] = [[pair[0] for pair in level] for level in dilations]
    if model.num_classes:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(model.num_classes)}
    return config
