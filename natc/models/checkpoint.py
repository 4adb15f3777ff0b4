"""Load published, fine-tuned and converted checkpoints, and write them in another layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natc.errors import ArgumentError, CheckpointError
from natc.models import files, layouts, settings
from natc.models.nat import NAT
from natc.models.network import Network
from natc.models.variant import VARIANTS, Variant
from natc.models.windows import resized_bias

LAYOUTS = ("official", "hf", "timm")
_SHOWN = 8


@dataclass
class LoadReport:
    """The layout and network that `load` recognized, and the weights that it changed to fit."""

    source: str
    network: str
    """Name of the published network, or of its class."""
    layout: str
    """The names of its weights: "official" or "hf"."""
    part: str
    """The entry of the file that held the weights, such as "state_dict_ema"; "" if none did."""
    ignored: list[str] = field(default_factory=list)
    """Names of weights around the network, such as a detector's."""
    new: list[str] = field(default_factory=list)
    """Names of weights that are random, because the head has another number of classes."""
    interpolated: list[str] = field(default_factory=list)
    """Names of position biases that were interpolated for other windows."""

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.network}, {self.layout} layout"]
        if self.part:
            lines[0] += f", from its entry {self.part!r}"
        for what, names in (
            ("beside the network, not loaded", self.ignored),
            ("new, with random weights", self.new),
            ("interpolated for other windows", self.interpolated),
        ):
            if names:
                lines.append(f"{what}: {_listed(names)}")
        return "\n".join(lines)


def load(
    source: str | Path,
    *,
    variant: str | None = None,
    model: Network | None = None,
    **options: Any,
) -> Network:
    """Return a network with the weights of a checkpoint; `.checkpoint` is a `LoadReport`.

    Args:
        source: a file (`.pth`, or `.safetensors`), a folder of Transformers or timm (config.json
            and weights), the name of a published network such as "nat_mini" or
            "dinat_large.in22k", which is downloaded, or the name of a model on the hub of
            Hugging Face. Files of classifiers, detectors and segmenters and training checkpoints
            of timm are recognized.
        variant: the published network that it is, if neither its name nor the file says so:
            weights do not hold dilations.
        model: a network to load into, instead of a published one.
        options: of the network, such as `num_classes` (another number gets a new head) and
            `kernel_size` (position biases are interpolated).

    Raises:
        CheckpointError: the file cannot be read, or belongs to another network; the message names
            missing, unexpected and mismatched weights.
        ArgumentError: a variant that does not exist, or cannot be told.
    """
    content = files.read(source)
    unwrapped, part = layouts.unwrapped(content.content)
    weights, ignored = layouts.backbone_of(unwrapped)
    is_hf = layouts.is_hf(weights)
    if is_hf:
        weights = layouts.from_hf(weights)
    in_weights = settings.from_weights(weights)
    if model is None:
        name, model = _network(content, variant, is_hf, {**in_weights, **options})
    else:
        name = type(model).__name__
    report = LoadReport(content.source, name, "hf" if is_hf else "official", part, ignored)
    _fit(weights, model, report)
    model.checkpoint = report
    return model


def _network(
    content: files.Content, variant: str | None, is_hf: bool, options: dict[str, Any]
) -> tuple[str, Network]:
    """Return the name of a checkpoint's network, and the network with random weights."""
    config = content.config or {}
    if variant is None and is_hf and config:
        arguments = {**settings.from_hf_config(config), **options}
        return str(config.get("model_type", "nat")), NAT(**arguments)
    if variant is None:
        named = config.get("architecture") or content.content.get("arch")
        variant = str(named).partition(".")[0] if named else settings.variant_in(content.name)
        options = {**config.get("model_args", {}), **options}
    if variant is None:
        raise ArgumentError(
            f"neither the name nor the content of {content.source} says which network it is, and "
            f"weights do not hold dilations; pass variant=, one of {', '.join(sorted(VARIANTS))}."
        )
    if variant not in VARIANTS:
        raise ArgumentError(
            f"variant is {variant!r}; it must be one of {', '.join(sorted(VARIANTS))}."
        )
    return variant, VARIANTS[variant].build(**options)


def _fit(weights: Mapping[str, Tensor], model: Network, report: LoadReport) -> None:
    """Load weights into a network; replace a head and interpolate biases where sizes differ."""
    own = model.state_dict()
    fitted: dict[str, Tensor] = {}
    mismatched = []
    for name, tensor in weights.items():
        if name not in own or tensor.shape == own[name].shape:
            fitted[name] = tensor
        elif name.startswith("head."):
            report.new.append(name)
        elif name.endswith(".rpb") and tensor.shape[0] == own[name].shape[0]:
            sizes = [(offsets + 1) // 2 for offsets in own[name].shape[1:]]
            fitted[name] = resized_bias(tensor, sizes)
            report.interpolated.append(name)
        else:
            mismatched.append(f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}")
    without_head = not model.num_classes
    dropped = {n for n in fitted if n not in own and without_head and n.startswith("head.")}
    report.ignored += sorted(dropped)
    unexpected = [name for name in fitted if name not in own and name not in dropped]
    # Weights of a headless network give a classifier a new head.
    if not any(name.startswith("head.") for name in weights):
        report.new += [name for name in own if name.startswith("head.")]
    missing = [name for name in own if name not in fitted and name not in report.new]
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (
            ("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched),
        )
        if names
    ]  # fmt: skip
    if problems:
        raise CheckpointError(
            f"{report.source} does not fit {report.network}: {'; '.join(problems)}. Pass variant= "
            "or model= if it is another network."
        )
    with torch.no_grad():
        model.load_state_dict({n: t for n, t in fitted.items() if n in own}, strict=False)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def save(model: Network, path: str | Path, layout: str = "official") -> None:
    """Write a network's weights in one step, so that a reader sees the old file or the new one.

    Args:
        model: the network.
        path: a file (`.safetensors`, or else as `torch.save` writes it) for "official"; a folder
            for "hf" and "timm", which gets config.json and model.safetensors.
        layout: "official" for the authors' names, "hf" for Transformers (`natc.models.hf` and
            transformers up to 4.53 load it), "timm" for `timm.create_model("local-dir:FOLDER")`.

    Raises:
        ArgumentError: another layout.
        CheckpointError: a network that the layout cannot hold.
    """
    if layout not in LAYOUTS:
        raise ArgumentError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}.")
    path = Path(path)
    weights = model.state_dict()
    if layout == "official":
        files.write_weights(path, weights)
    elif layout == "hf":
        config = settings.hf_config(model)
        prefix = "" if "norm0.weight" in weights else f"{config['model_type']}."
        files.write_folder(path, config, layouts.to_hf(weights, prefix))
    else:
        files.write_folder(path, _timm_config(model), weights)


def _timm_config(model: Network) -> dict[str, Any]:
    """Return the config.json of a local folder of timm."""
    report = getattr(model, "checkpoint", None)
    name = report.network if isinstance(report, LoadReport) else None
    if name not in VARIANTS:
        name = next(
            (
                name
                for name, variant in VARIANTS.items()
                if type(model) is variant.network and _same_shapes(model, variant)
            ),
            None,
        )
    if name is None:
        raise CheckpointError("timm's layout names a published network, and this is none of them.")
    size = VARIANTS[name].img_size
    first = model.get_submodule(model.first_conv)
    config: dict[str, Any] = {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": {
            "input_size": [first.in_channels, size, size],
            "num_classes": model.num_classes,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "first_conv": model.first_conv,
            "classifier": "head",
        },
    }
    with torch.device("meta"):
        published = VARIANTS[name].build().blocks()
    window = model.blocks()[0].attn.kernel_size
    if window != published[0].attn.kernel_size:
        config["model_args"] = {"kernel_size": list(window)}
    return config


def _same_shapes(model: Network, variant: Variant) -> bool:
    """Return whether a published network has the blocks of `model`, dilations included."""
    with torch.device("meta"):
        published = variant.build()
    mine, theirs = model.blocks(), published.blocks()
    return (
        type(model) is type(published)
        and [i["num_chs"] for i in model.feature_info]
        == [i["num_chs"] for i in published.feature_info]
        and len(mine) == len(theirs)
        and all(
            a.attn.dilation == b.attn.dilation
            and a.attn.num_heads == b.attn.num_heads
            and a.mlp.fc1.weight.shape == b.mlp.fc1.weight.shape
            for a, b in zip(mine, theirs)
        )
    )


def convert(source: str | Path, path: str | Path, layout: str, **options: Any) -> Network:
    """Load a checkpoint, write it in another layout, and return the network.

    Arguments as for `load` and `save`.
    """
    model = load(source, **options)
    save(model, path, layout)
    return model
